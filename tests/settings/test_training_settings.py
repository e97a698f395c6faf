"""The settings of a training run: what only they have, beside what every declared setting has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.errors import ConfigError
from textual_inversion.settings.schedule import CosineSchedule, LearningRateSchedule
from textual_inversion.settings.training import PRECISIONS, TrainingConfig, check_trained_together


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"name": "mine", "images": "pictures", **changes})


def refusal(**changes: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert caught.value.reason.endswith(".")
    return caught.value


def test_schedules_must_parse() -> None:
    assert refusal(learning_rate="quick").setting == "learning_rate"
    assert refusal(clip_mode="norm", clip_schedule="hard").setting == "clip_schedule"
    assert config(clip_mode="off", clip_schedule="").clip_mode == "off"
    assert config(learning_rate=0.01).learning_rate == 0.01


def test_an_empty_clip_schedule_is_not_called_a_learning_rate() -> None:
    assert refusal(clip_mode="norm", clip_schedule="").reason.startswith("The clip schedule is empty")


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"filename_regex": "("}, "filename_regex"),
        ({"background": "bluish"}, "background"),
        ({"buckets": True, "no_resize": True}, "no_resize"),
        ({"flip": 1}, "flip"),
        ({"log_dir": None}, "log_dir"),
        ({"preview_width": 8}, "preview_width"),
    ],
)
def test_other_rules_name_their_setting(changes: dict[str, Any], setting: str) -> None:
    assert refusal(**changes).setting == setting


TEXT = st.text(st.characters(exclude_characters="\0"), max_size=20)


@given(st.integers(1, 1024), st.floats(0, 1), st.booleans(), st.sampled_from(PRECISIONS), TEXT)
def test_a_config_survives_json(batch: int, dropout: float, flip: bool, precision: str, prompt: str) -> None:
    written = config(batch_size=batch, tag_dropout=dropout, flip=flip, precision=precision, preview_prompt=prompt)
    assert TrainingConfig.from_dict(json.loads(json.dumps(written.to_dict()))) == written


def test_paths_become_text() -> None:
    assert config(images=Path("a") / "b").to_dict()["images"] == str(Path("a") / "b")


def test_limits_are_written_out_and_huge_numbers_cut() -> None:
    assert "from 1 to 1000000, or auto." in refusal(steps=0).reason
    assert "from 0 to 4294967295." in refusal(seed=-1).reason
    assert len(refusal(seed=10**400).reason) < 200


@pytest.mark.parametrize(
    ("method", "written", "first", "tenth"),
    [
        ("classic", "auto", 0.005, 0.005),
        ("classic", "0.01", 0.01, 0.01),
        ("classic", "0.01:5, 0.001", 0.01, 0.001),
        ("directional", "0.2:5, 0.02", 0.2, 0.02),
        ("pulled", "0.01:-1", 0.01, 0.01),
    ],
)
def test_rates_as_written(method: str, written: str, first: float, tenth: float) -> None:
    rates = config(method=method, learning_rate=written, steps=100).rates(0, 0.07)
    assert isinstance(rates, LearningRateSchedule)
    assert (rates.at(1), rates.at(10)) == (first, tenth)


@pytest.mark.parametrize(("written", "peak"), [("auto", 0.049), (" AUTO ", 0.049), (0.1, 0.1), ("0.1", 0.1)])
def test_a_single_rate_falls_but_in_classic_training(written: str | float, peak: float) -> None:
    rates = config(learning_rate=written, steps=150).rates(50, 0.07)
    assert isinstance(rates, CosineSchedule)
    assert (rates.peak, rates.first_step, rates.last_step) == (pytest.approx(peak), 50, 150)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [({"name": "mine"}, "name"), ({"clip_skip": 2}, "clip_skip"), ({"precision": "bf16"}, "precision"), ({"device": "cpu"}, "device")],
)
def test_embeddings_that_are_trained_together_share_some_settings(changes: dict[str, Any], setting: str) -> None:
    check_trained_together([config(), config(name="other", steps=7, batch_size=9, learning_rate="0.1")])
    with pytest.raises(ConfigError) as caught:
        check_trained_together([config(), config(**{"name": "other", **changes})])
    assert caught.value.setting == setting


def test_nothing_cannot_be_trained_together() -> None:
    with pytest.raises(ConfigError):
        check_trained_together([])


@pytest.mark.parametrize(
    ("changes", "pictures", "full_size", "expected"),
    [
        ({}, 6, True, 400),
        ({}, 6, False, 150),
        ({"method": "classic"}, 6, True, 3000),
        ({}, 100, True, 400),
        ({}, 101, True, 404),
        ({"batch_size": 8}, 200, True, 400),
        ({"batch_size": 1, "gradient_accumulation_steps": 2}, 200, True, 1600),
        ({}, 50_000, True, 4000),
        ({"steps": 7}, 50_000, True, 7),
    ],
)
def test_steps_fit_the_checkpoint_the_method_and_the_pictures(
    changes: dict[str, Any], pictures: int, full_size: bool, expected: int
) -> None:
    assert config(**changes).with_steps(pictures, full_size=full_size).total_steps == expected
