"""What follows from a declaration, for every setting of every class."""

from __future__ import annotations

import math
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, ClassVar, Union

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.errors import ConfigError
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.preprocessing import PreprocessConfig
from textual_inversion.settings.schema import Setting, Settings, cleaned, folder_text, grouped, setting, setting_of, settings_of
from textual_inversion.settings.training import TrainingConfig

CLASSES: tuple[type[Settings], ...] = (TrainingConfig, GenerationSettings, PreprocessConfig, NewEmbedding)
ALL = [each for settings in CLASSES for each in settings_of(settings)]
NUMBERS = [each for each in ALL if each.type in (int, float)]
WHOLE = [each for each in NUMBERS if each.type is int]


def ends(each: Setting) -> tuple[float, float]:
    assert each.minimum is not None
    assert each.maximum is not None
    return each.minimum, each.maximum


def expect_refusal(each: Setting, value: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        each.check(value)
    assert caught.value.setting == each.name
    return caught.value


@given(st.sampled_from(NUMBERS), st.data())
def test_every_number_of_its_range_will_do(each: Setting, data: st.DataObject) -> None:
    low, high = ends(each)
    if each.type is int:
        each.check(data.draw(st.integers(int(low), int(high))) // each.multiple * each.multiple)
    else:
        each.check(data.draw(st.floats(low, high)))
    for end in (*ends(each), *([0] if each.zero else [])):
        each.check(end)


@given(st.sampled_from(NUMBERS), st.data())
def test_no_number_outside_its_range_will(each: Setting, data: st.DataObject) -> None:
    low, high = ends(each)
    outside = st.floats(max_value=low, exclude_max=True) | st.floats(min_value=high, exclude_min=True) | st.just(math.nan)
    whole = st.integers(max_value=int(low) - 1) | st.integers(min_value=int(high) + 1)
    value = data.draw(outside | whole)
    if not (each.zero and value == 0):
        expect_refusal(each, value)


@given(st.sampled_from(NUMBERS), st.sampled_from(["7", None, True, [], math.inf]))
def test_nothing_but_numbers_will(each: Setting, value: Any) -> None:
    expect_refusal(each, value)


@given(st.sampled_from(WHOLE), st.data())
def test_fractions_and_other_multiples_are_refused(each: Setting, data: st.DataObject) -> None:
    low, high = ends(each)
    value = data.draw(st.integers(int(low), int(high)))
    expect_refusal(each, float(value) if value < high else float(high) - 0.5)
    if value % each.multiple:
        assert "multiple of" in expect_refusal(each, value).reason


@given(st.sampled_from([each for each in ALL if each.choices and each.type is str]), st.text(max_size=5))
def test_only_choices_will_do_and_they_are_listed(each: Setting, text: str) -> None:
    for choice in each.choices:
        each.check(choice)
    if text not in each.choices:
        assert ", ".join(each.choices) in expect_refusal(each, text).reason


def test_messages_name_the_setting_and_what_it_must_be() -> None:
    said = {
        ("batch_size", 0): "Batch size is 0; it must be from 1 to 1024.",
        ("batch_size", 1.5): "Batch size is 1.5; it must be a whole number.",
        ("width", 100): "Width is 100; it must be a multiple of 8, at least 64.",
        ("preview_width", -8): "Preview width is -8; it must be from 0 to 2048.",
        ("bucket_step", 9): "Bucket step is 9; it must be a multiple of 8.",
        ("flip", "no"): "Flip is 'no'; it must be true or false.",
        ("clip_mode", "x"): "Clip mode is 'x'; it must be one of off, value, norm.",
        ("background", "bluish"): "Background is 'bluish'; it must be the name of a colour, or such as #ffffff.",
        ("name", None): "Name is None; it must be a text.",
    }
    assert {(name, value): expect_refusal(setting_of(TrainingConfig, name), value).reason for name, value in said} == said


@pytest.mark.parametrize("settings", CLASSES)
def test_every_setting_is_explained_and_every_form_label_is_there_once(settings: type[Settings]) -> None:
    declared = settings_of(settings)
    assert [each.name for each in declared if not (each.help and each.label)] == []
    assert [each.name for each in declared if each.help.endswith(".") or "{" in each.described] == []
    assert len({each.label for each in declared}) == len(declared)


@pytest.mark.parametrize("settings", CLASSES)
def test_every_default_is_allowed(settings: type[Settings]) -> None:
    for each in settings_of(settings):
        if not each.required:
            each.check(each.default)


@given(st.sampled_from(NUMBERS), st.floats(-1e7, 1e10))
def test_the_nearest_allowed_number_is_allowed(each: Setting, value: float) -> None:
    nearest = each.nearest(value)
    each.check(nearest)
    low, high = ends(each)
    if low <= value <= high:
        assert value - max(each.multiple, 1) < nearest <= value


def test_unknown_and_missing_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="'lerning_rate'; the settings are alpha_weight, ") as unknown:
        TrainingConfig.from_dict({"name": "mine", "images": "pictures", "lerning_rate": "1"})
    assert unknown.value.setting == "lerning_rate"
    with pytest.raises(ConfigError, match="'images' is missing") as missing:
        TrainingConfig.from_dict({"name": "mine"})
    assert missing.value.setting == "images"


def test_groups_keep_the_order_of_declaration_but_where_a_setting_goes_before_another() -> None:
    @dataclass(frozen=True)
    class Few(Settings):
        GROUPS: ClassVar[tuple[str, ...]] = ("second", "first")
        a: int = setting(1, group="first")
        b: int = setting(1, group="first")
        c: int = setting(1, group="second")
        d: int = setting(1, group="first", before="b")
        e: int = setting(1, group="first", before="d")
        f: int = setting(1)
        g: int = setting(1, group="new")

    assert {group: "".join(each.name for each in members) for group, members in grouped(Few).items()} == {
        "": "f", "second": "c", "first": "aedb", "new": "g",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", 7.0, 7),
        ("tag_dropout", "0.5", 0.5),
        ("flip", None, False),
        ("preview_prompt", None, ""),
        ("preview_prompt", " a cat ", "a cat"),
        ("filename_join", " ", " "),
        ("images", ' "/a b" ', "/a b"),
    ],
)
def test_a_forms_values_become_the_types_of_their_settings(name: str, value: Any, expected: Any) -> None:
    (found,) = cleaned(TrainingConfig, {name: value, "no such": 1}).values()
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(("value", "reason"), [
    (None, "Max steps is empty; it must be a number, or auto."), ("x", "Max steps is 'x'; it must be a number, or auto."),
    (1.5, "Max steps is 1.5; it must be a whole number, or auto."), (math.nan, "Max steps is nan; it must be a whole number, or auto."),
])  # fmt: skip
def test_a_form_that_holds_no_number_is_told_by_its_label(value: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cleaned(TrainingConfig, {"steps": value})
    assert (caught.value.reason, caught.value.setting) == (reason, "steps")


PASTED = [('"/a b/c"', "/a b/c"), (" /a ", "/a"), ("'/a'", "/a"), (None, ""), ("/it's", "/it's"), ("~", str(Path.home()))]


@pytest.mark.parametrize(("pasted", "meant"), PASTED)
def test_folders_are_taken_as_they_are_pasted(pasted: str | None, meant: str) -> None:
    assert folder_text(pasted) == meant


@pytest.mark.parametrize("number", [np.int64(4), np.uint8(4), np.float32(0.5)])
def test_numbers_of_numpy_become_pythons_own(number: Any) -> None:
    name = "seed" if isinstance(number, np.integer) else "tag_dropout"
    config = TrainingConfig("a", "b", **{name: number})
    assert type(config.to_dict()[name]) in (int, float)
    assert config.to_dict()[name] == number


@pytest.mark.parametrize(("annotation", "types"), [
    (int, (int,)), ("str | float", (str, float)), (Union[int, str], (int, str)), (tuple[str, ...], (tuple,)),  # noqa: UP007  both ways
])  # fmt: skip
def test_every_way_of_writing_a_type_is_read(annotation: Any, types: tuple[type, ...]) -> None:
    settings = make_dataclass("Made", [("a", annotation, setting(1))], bases=(Settings,), frozen=True)
    assert settings_of(settings)[0].types == types


def test_a_whole_number_that_was_typed_keeps_all_its_digits() -> None:
    seed = setting_of(TrainingConfig, "seed")
    assert seed.clean(" 4294967295 ") == 4294967295
    assert seed.clean("123456789012345678901") == 123456789012345678901
    with pytest.raises(ConfigError, match="123456789012345678901"):
        seed.check(seed.clean("123456789012345678901"))
