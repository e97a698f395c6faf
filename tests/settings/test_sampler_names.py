"""Samplers by other names than those of the list: A1111's aliases, its older names, other capitals."""

from __future__ import annotations

import pytest

from textual_inversion.errors import ConfigError
from textual_inversion.settings.generation import SAMPLER_ALIASES, SAMPLERS, GenerationSettings
from textual_inversion.settings.training import TrainingConfig


@pytest.mark.parametrize(("given", "meant"), [
    ("k_euler_a", "Euler a"), ("euler_ancestral", "Euler a"), ("K_DPMPP_2M_KA", "DPM++ 2M Karras"), ("dpm++ 2m karras", "DPM++ 2M Karras"),
    ("DPM2 a Karras", "DPM2 a"), ("k_dpm_2", "DPM2"), ("DPM++ 2M SDE Exponential", "DPM++ 2M SDE"), ("ddim", "DDIM"), ("unipc", "UniPC"),
    *((name, name) for name in SAMPLERS),
])  # fmt: skip
def test_other_names_mean_the_sampler(given: str, meant: str) -> None:
    assert GenerationSettings("a cat", sampler=given).sampler == meant
    assert TrainingConfig("zorb", "pictures", preview_sampler=given).preview_sampler == meant
    assert GenerationSettings.from_dict({"prompt": "a cat", "sampler": given}).to_dict()["sampler"] == meant


@pytest.mark.parametrize("given", ["k_euler_b", "", "PLMS", "DPM fast"])
def test_unknown_names_are_refused_with_the_list(given: str) -> None:
    with pytest.raises(ConfigError, match=r"DPM\+\+ 2M Karras, .*LCM"):
        GenerationSettings("a cat", sampler=given)


def test_no_other_name_takes_the_place_of_a_sampler() -> None:
    assert set(SAMPLER_ALIASES.values()) == set(SAMPLERS)
    assert all(SAMPLER_ALIASES[name.casefold().replace(" ", "")] == name for name in SAMPLERS)
