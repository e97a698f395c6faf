"""Many pictures are drawn a few at a time, and a checkpoint's own noise schedule must be one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import write_checkpoint
from textual_inversion.diffusion import generate as module
from textual_inversion.diffusion.generate import generate
from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
from textual_inversion.diffusion.noise import NoiseSchedule
from textual_inversion.settings.generation import GenerationSettings


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def model(path: Path) -> StableDiffusion:
    return load_checkpoint(path, device="cpu")


SETTINGS = GenerationSettings(prompt="a cat", steps=2, width=64, height=64, seed=5, count=3)


def test_parts_are_drawn_one_after_the_other(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    together, sizes, told = generate(model, SETTINGS, {}), [], []
    draw = module.draw_prompts
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 2 * 64 * 64)
    monkeypatch.setattr(
        module, "draw_prompts", lambda model, prompts, *a, **k: (sizes.append(len(prompts)), draw(model, prompts, *a, **k))[1]
    )
    apart = generate(model, SETTINGS, {}, progress=lambda done, total: told.append((done, total)))
    assert sizes == [2, 1]
    assert told == [(2, 6), (4, 6), (5, 6), (6, 6)]
    for one, other in zip(together, apart):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 2


def test_stopping_in_a_later_part_gives_the_whole_pictures(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 64 * 64)
    told: list[int] = []
    pictures = generate(model, SETTINGS, {}, progress=lambda done, total: told.append(done), should_stop=lambda: len(told) == 3)
    assert told == [1, 2, 3]
    assert [picture.size for picture in pictures] == [(64, 64)]


@pytest.mark.parametrize(
    "values", [torch.full((1000,), float("nan")), torch.linspace(0, 1, 1000), torch.linspace(2, 0.1, 1000), torch.arange(1000)]
)
def test_a_noise_schedule_that_is_none_gives_way_to_the_usual_one(path: Path, tmp_path: Path, values: torch.Tensor) -> None:
    save_file({**load_file(path), "alphas_cumprod": values}, tmp_path / "odd.safetensors")
    model = load_checkpoint(tmp_path / "odd.safetensors", device="cpu")
    assert torch.equal(model.schedule.alphas_cumprod, NoiseSchedule.scaled_linear().alphas_cumprod)
    assert re.search(r"odd\.safetensors.*alphas_cumprod", model.notes[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_schedule_that_ends_in_pure_noise_draws(path: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """As checkpoints trained with zero terminal SNR have it; an infinite noise level would make every picture black."""
    save_file({**load_file(path), "alphas_cumprod": torch.linspace(0.999, 0, 1000).to(dtype)}, tmp_path / "zero.safetensors")
    zero = load_checkpoint(tmp_path / "zero.safetensors", device="cpu")
    assert torch.isfinite(zero.schedule.sigmas).all()
    (picture,) = generate(zero, GenerationSettings(prompt="a", steps=2, width=64, height=64), {})
    assert np.asarray(picture).std() > 0
