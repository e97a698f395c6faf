"""A setting is declared once: one more field, and nothing else, and it is checked, an option, in the form, in the API and in the docs."""

from __future__ import annotations

import argparse
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

import gradio as gr
import pydantic
import pytest

from textual_inversion.cli.common import add_settings, values_of
from textual_inversion.errors import ConfigError
from textual_inversion.hosts.webui.api_models import request_fields
from textual_inversion.settings.schema import Settings, cleaned, setting, setting_of
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.ui import form
from tools import settings_docs

GIVEN = {"name": "mine", "images": "pictures"}
WARMUP: Any = setting(
    5,
    minimum=0,
    maximum=100,
    step=5,
    group="learning",
    label="Warm-up",
    hint="Begin gently.",
    help="steps ({range}) over which the learning rate rises to its first value",
)


def with_warmup() -> type[TrainingConfig]:
    """`TrainingConfig` with `warmup: int = setting(…)` written behind `batch_size`."""
    hints, members = get_type_hints(TrainingConfig), []
    for each in fields(TrainingConfig):
        members.append((each.name, hints[each.name], field(default=each.default, metadata=each.metadata)))
        if each.name == "batch_size":
            members.append(("warmup", int, WARMUP))
    rules = {"check_together": TrainingConfig.check_together, "GROUPS": TrainingConfig.GROUPS}
    return make_dataclass("WithWarmup", members, bases=(Settings,), namespace=rules, frozen=True)  # type: ignore[return-value]


CONFIG = with_warmup()


def test_it_is_checked() -> None:
    assert CONFIG(**GIVEN).to_dict()["warmup"] == 5
    assert CONFIG.from_dict({**GIVEN, "warmup": 100}).to_dict()["warmup"] == 100
    with pytest.raises(ConfigError) as caught:
        CONFIG(**GIVEN, warmup=101)  # type: ignore[call-arg]
    assert (caught.value.reason, caught.value.setting) == ("Warmup is 101; it must be from 0 to 100.", "warmup")


def test_it_is_among_the_known_settings() -> None:
    with pytest.raises(ConfigError, match=r"the settings are .*, warmup, "):
        CONFIG.from_dict({**GIVEN, "warmpu": 1})


def test_it_is_an_option_in_its_group_at_the_place_of_its_declaration() -> None:
    parser = argparse.ArgumentParser()
    learning = add_settings(parser, CONFIG)["learning"]
    names = [action.dest for action in learning._group_actions]
    assert names[names.index("batch_size") + 1] == "warmup"
    text = " ".join(parser.format_help().split())
    assert "--warmup N steps (0 to 100) over which the learning rate rises to its first value; default: 5" in text
    parser.set_defaults(**GIVEN, precision="auto", prediction_type="auto", device="")
    assert values_of(parser.parse_args(["--warmup", "7"]), CONFIG)["warmup"] == 7


def test_it_is_in_the_form_under_its_group() -> None:
    rows = form.train_sections(CONFIG)["How it learns"]
    assert (setting_of(CONFIG, "warmup"),) in rows
    with gr.Blocks():
        slider = form.draw(rows, {}, "train")["warmup"]
    assert isinstance(slider, gr.Slider)
    assert (slider.minimum, slider.maximum, slider.step, slider.value) == (0, 100, 5, 5)
    assert (slider.label, slider.info, slider.elem_id) == ("Warm-up", "Begin gently.", "ti_train_warmup")
    assert cleaned(CONFIG, {"warmup": 7.0}) == {"warmup": 7}


def test_it_is_described_and_taken_by_the_api() -> None:
    request = pydantic.create_model("Request", **request_fields(CONFIG))  # type: ignore[call-overload]
    schema = getattr(request, "model_json_schema", None) or request.schema
    described = schema()["properties"]["warmup"]
    assert (described["type"], described["default"]) == ("integer", 5)
    assert described["description"] == "steps (0 to 100) over which the learning rate rises to its first value."
    assert request(**GIVEN, warmup=7).warmup == 7
    with pytest.raises(pydantic.ValidationError):
        request(**GIVEN, warmup="7")


def test_it_is_in_the_docs() -> None:
    assert "| `warmup` | Warm-up | `5` | 0 to 100 | steps (0 to 100) over which" in settings_docs.tables(CONFIG)


def test_the_docs_are_up_to_date() -> None:
    assert settings_docs.PAGE.read_text(encoding="utf-8") == settings_docs.page(), "run python -m tools.settings_docs"
