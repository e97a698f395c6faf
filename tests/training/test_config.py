"""The settings of a training run: their ranges, and the way to a dict and back."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.errors import ConfigError
from textual_inversion.settings.training import CLIP_MODES, PRECISIONS, SAMPLING_METHODS, TrainingConfig

RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 1_000_000), "batch_size": (1, 1024), "gradient_accumulation_steps": (1, 1024), "width": (64, 2048), "height": (64, 2048),
    "weight_decay": (0, 10), "tag_dropout": (0, 1), "clip_skip": (1, 12), "seed": (0, 2**32 - 1), "copy_every": (0, 1_000_000),
    "preview_every": (0, 1_000_000), "preview_steps": (1, 150), "preview_cfg_scale": (1, 30), "preview_seed": (0, 2**32 - 1),
    "csv_every": (0, 1_000_000),
}  # fmt: skip
FRACTIONS = {"weight_decay", "tag_dropout", "preview_cfg_scale"}


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"name": "mine", "images": "pictures", **changes})


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    message = str(caught.value)
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("name", RANGES)
def test_both_ends_of_a_range_are_in_it(name: str) -> None:
    for value in RANGES[name]:
        assert getattr(config(**{name: value}), name) == value


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("beyond", [-1e9, 1e12, float("nan"), float("inf"), "7", None, True])
def test_what_is_outside_is_refused_by_name(name: str, beyond: Any) -> None:
    assert refusal(**{name: beyond}).lower().startswith(name.replace("_", " "))


@pytest.mark.parametrize("name", RANGES)
def test_just_outside_is_outside(name: str) -> None:
    low, high = RANGES[name]
    step = 0.001 if name in FRACTIONS else 1
    assert "must be from" in refusal(**{name: low - step})
    assert "must be from" in refusal(**{name: high + step})


@pytest.mark.parametrize("name", sorted(set(RANGES) - FRACTIONS))
def test_counts_are_whole(name: str) -> None:
    assert "whole number" in refusal(**{name: 64.5 if name in ("width", "height") else 1.5})


@given(st.integers(64, 2048))
def test_sizes_are_multiples_of_8(size: int) -> None:
    if size % 8:
        assert "multiple of 8" in refusal(width=size)
        assert "multiple of 8" in refusal(height=size)
    else:
        assert config(width=size, height=size).width == size


@pytest.mark.parametrize(("name", "choices"), [("clip_mode", CLIP_MODES), ("latent_sampling", SAMPLING_METHODS), ("precision", PRECISIONS)])
def test_choices_are_listed(name: str, choices: tuple[str, ...]) -> None:
    for choice in choices:
        assert getattr(config(**{name: choice}), name) == choice
    assert ", ".join(choices) in refusal(**{name: "other"})


def test_schedules_must_parse() -> None:
    assert "'quick'" in refusal(learning_rate="quick")
    assert "'hard'" in refusal(clip_mode="norm", clip_schedule="hard")
    assert config(clip_mode="off", clip_schedule="").clip_mode == "off"


@given(st.integers(1, 1024), st.floats(0, 1), st.booleans(), st.sampled_from(PRECISIONS), st.text(max_size=20))
def test_a_config_survives_json(batch: int, dropout: float, flip: bool, precision: str, prompt: str) -> None:
    written = config(batch_size=batch, tag_dropout=dropout, flip=flip, precision=precision, preview_prompt=prompt)
    assert TrainingConfig.from_dict(json.loads(json.dumps(written.to_dict()))) == written


def test_paths_become_text() -> None:
    assert config(images=Path("a") / "b").to_dict()["images"] == str(Path("a") / "b")


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="'lerning_rate'"):
        TrainingConfig.from_dict({"name": "mine", "images": "pictures", "lerning_rate": "1"})


def test_missing_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="'images' is missing"):
        TrainingConfig.from_dict({"name": "mine"})


def test_limits_are_written_out_and_huge_numbers_cut() -> None:
    assert "from 1 to 1000000." in refusal(steps=0)
    assert "from 0 to 4294967295." in refusal(seed=-1)
    assert len(refusal(seed=10**400)) < 200


def test_an_empty_clip_schedule_is_not_called_a_learning_rate() -> None:
    assert refusal(clip_mode="norm", clip_schedule="").startswith("The clip schedule is empty")


def test_every_field_is_documented() -> None:
    text = TrainingConfig.__doc__ or ""
    assert [field.name for field in fields(TrainingConfig) if f"        {field.name}: " not in text] == []
