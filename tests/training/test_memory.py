"""How a run is fitted into memory, and that what is done for it changes no result."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.models import SDXL
from tests.support.checkpoints import shapes_of
from textual_inversion.diffusion.checkpoint import TEXT_ENCODERS, UNET, VAE, CheckpointFile
from textual_inversion.diffusion.clip import CLIPConfig
from textual_inversion.diffusion.vae import VAEConfig
from textual_inversion.training.estimate import MemoryCost, memory_cost
from textual_inversion.training.memory import EncodingPlan, MemoryPlan, choose, choose_encoding, fitted, unet_aside, vae_at_work
from textual_inversion.training.trainer import train

GIB = 2**30
PLAIN = MemoryCost(activations=1 * GIB, weights=2 * GIB, vae=0.5 * GIB, encoding=0.1 * GIB)
CHECKPOINTED = replace(PLAIN, activations=0.25 * GIB)


def cost_of(checkpointing: bool) -> MemoryCost:
    return CHECKPOINTED if checkpointing else PLAIN


def chosen(batch: int, available: float, wish: str = "auto", **options: int) -> tuple[bool, bool, int]:
    plan = choose(cost_of, batch, available * GIB, wish, **options)
    return plan.checkpointing, plan.vae_waits, plan.batch_size


def test_what_costs_least_time_comes_first() -> None:
    assert chosen(4, 20) == (False, False, 4)
    assert chosen(4, 6.6) == (False, True, 4)  # without the VAE it fits
    assert chosen(4, 5) == (False, False, 2)  # in smaller passes
    assert chosen(1, 3.2) == (True, True, 1)
    assert chosen(4, 2.8) == (True, True, 2)
    assert chosen(4, 1) == (True, True, 1)  # the smallest where nothing fits


def test_what_does_not_matter_is_not_counted() -> None:
    asked: list[bool] = []
    choose(lambda checkpointing: asked.append(checkpointing) or PLAIN, 4, 20 * GIB)  # type: ignore[func-returns-value]
    assert asked == [False]


def test_the_users_wish_counts() -> None:
    assert chosen(4, 20, "on") == (True, True, 4)
    assert chosen(1, 3.4, "off") == (False, True, 1)
    assert chosen(4, 5, most_parts=1) == (True, True, 4)


@given(st.integers(1, 64), st.floats(0.1, 100))
def test_a_plan_that_fits_is_taken_whenever_there_is_one(batch: int, available: float) -> None:
    plan = choose(cost_of, batch, available * GIB)
    assert batch % plan.batch_size == 0
    smallest = CHECKPOINTED.training(1, vae_stays=False)
    assert (plan.needed <= available * GIB) == (smallest <= available * GIB)


def test_the_sentence_says_what_was_done() -> None:
    assert MemoryPlan(3 * GIB, False, True, 4).sentence(4 * GIB, 4) == ""
    said = MemoryPlan(3 * GIB, True, True, 2).sentence(4 * GIB, 8)
    assert "3.0 of 4.0 GB" in said
    assert "checkpointing" in said
    assert "batches of 8 in passes of 2" in said


def test_smaller_passes_are_the_same_batch(config) -> None:
    split = MemoryPlan(0, False, False, 2).applied_to(replace(config, batch_size=8, gradient_accumulation_steps=3))
    assert (split.batch_size, split.gradient_accumulation_steps) == (2, 12)


def test_checkpointing_learns_the_same(config, model, folder, vectors):
    from textual_inversion import formats

    start = formats.load(folder / "thing.safetensors")
    results = []
    for wish in ("off", "on"):
        formats.save(start, folder / "thing.safetensors", overwrite=True)
        results.append(train(replace(config, gradient_checkpointing=wish), model, folder).vectors["clip_l"])
    assert torch.equal(*results)
    assert not torch.equal(results[0], start.vectors["clip_l"])
    assert not model.unet.checkpointing


def test_the_model_is_afterwards_as_it_was(model) -> None:
    with suppress(KeyError), fitted(model, MemoryPlan(0, True, True, 1)), vae_at_work(model):
        assert model.unet.checkpointing
        raise KeyError
    assert not model.unet.checkpointing
    assert model.vae.device == model.device


@pytest.mark.parametrize(
    ("usable", "together", "unet_waits"),
    [(20, 4, False), (8.25, 4, False), (8, 3, False), (2.25, 1, False), (2, 3, True), (0.5, 2, True), (-2, 1, True), (-9, 1, True)],
)
def test_pictures_are_encoded_in_the_memory_that_there_is(usable: float, together: int, unet_waits: bool) -> None:
    """2 GiB for a picture, 0.25 GiB beside, a UNet of 4.8 GiB."""
    assert choose_encoding(2 * GIB, 4.8 * GIB, usable * GIB) == EncodingPlan(together, unet_waits)


def test_the_unet_comes_back_after_encoding(model) -> None:
    before = {key: value.clone() for key, value in model.unet.state_dict().items()}
    with suppress(KeyError), unet_aside(model, EncodingPlan(1, unet_waits=True)):
        raise KeyError
    after = model.unet.state_dict()
    assert all(torch.equal(value, after[key]) and value.device == model.device for key, value in before.items())


def test_sdxl_fits_into_8_gib_with_everything_on_and_into_12_without() -> None:
    """By shapes alone; measured peaks are in docs/benchmarks.md."""
    first = CLIPConfig(fixed_layer=11, final_norm=False)
    second = CLIPConfig(width=1280, layers=32, quick_gelu=False, fixed_layer=31, final_norm=False, projection=1280)
    encoders = TEXT_ENCODERS["SDXL"]
    parts = ((UNET, SDXL.unet), (VAE, VAEConfig()), (encoders["clip_l"], first), (encoders["clip_g"], second))
    shapes = {prefix + key: shape for prefix, each in parts for key, shape in shapes_of(each).items()}
    file = CheckpointFile.of_shapes(Path("sdxl.safetensors"), shapes)
    plain = memory_cost(file, (1024, 1024), torch.bfloat16, fused=True)
    assert plain.peak(1) < 12 * GIB
    small = memory_cost(file, (1024, 1024), torch.bfloat16, fused=True, checkpointing=True)
    assert max(small.training(1, vae_stays=False), small.encoding_peak(unet_stays=False)) < 8 * GIB
