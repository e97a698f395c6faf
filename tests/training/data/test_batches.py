"""What goes into the steps: pictures, prompts and random numbers from seeded streams."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from textual_inversion.diffusion.conditioning import VectorTable
from textual_inversion.embedding import Embedding
from textual_inversion.errors import PromptError
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.data.batches import BatchMaker, PromptMaker
from textual_inversion.training.data.latents import LatentBucket, LatentMoments

NAME = "thing"


@pytest.fixture
def maker(model):
    def make(first_step: int = 0, **settings) -> BatchMaker:
        config = TrainingConfig(NAME, "", batch_size=2, width=64, height=64, **settings)
        generator = torch.Generator().manual_seed(3)
        mean, std = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
        table = VectorTable.of({NAME: Embedding(NAME, {"clip_l": torch.ones(2, 64)})}, {"clip_l": 64}, "cpu")
        prompts = PromptMaker(
            config, ["a photo of [name], [filewords]", "[name]"], ["red", "(green:1.2)", "blue wall"], model.conditioner, table
        )
        bucket = LatentBucket(LatentMoments(mean, std.abs()), (0, 1, 2))
        return BatchMaker(config, [bucket], prompts, noise_device="cpu", first_step=first_step)

    return make


def test_shapes_stay_and_every_prompt_holds_the_name(maker):
    batches = maker()
    for _ in range(6):
        batch = batches.next()
        assert batch.latents.shape == batch.noise.shape == (2, 4, 8, 8)
        assert batch.prompts.tokens.mask.sum(dim=1).tolist() == [2, 2]
        assert 0 <= int(batch.timesteps.min()) <= int(batch.timesteps.max()) <= 999


def test_the_same_seed_gives_the_same_batches(maker):
    one, same, other = (maker(seed=seed).next() for seed in (4, 4, 5))
    assert torch.equal(one.noise, same.noise)
    assert torch.equal(one.latents, same.latents)
    assert not torch.equal(one.noise, other.noise)


def test_a_run_that_goes_on_draws_new_numbers_over_the_same_latents(maker):
    first, later = maker(0), maker(5)
    known = {tuple(latent.flatten().tolist()) for _ in range(6) for latent in first.next().latents}
    assert len(known) == 3
    batch = later.next()
    assert {tuple(latent.flatten().tolist()) for latent in batch.latents} <= known
    assert not torch.equal(batch.noise, maker(0).next().noise)
    assert not torch.equal(batch.timesteps, maker(0).next().timesteps)


def test_latents_are_fixed_means_or_fresh(maker):
    def seen(method: str) -> int:
        batches = maker(latent_sampling=method)
        return len({tuple(latent.flatten().tolist()) for _ in range(9) for latent in batches.next().latents})

    assert seen("once") == 3
    assert seen("deterministic") == 3
    assert seen("random") == 18


def marked(rows: int, h: int, w: int, first: float) -> torch.Tensor:
    """Latents that say which row they are."""
    return (torch.arange(rows) + first).view(rows, 1, 1, 1).expand(rows, 4, h, w).clone()


@pytest.fixture
def sized(model):
    """Two sizes: pictures 0 and 2, of which 2 has three crops, and picture 1; mirror images behind them, with weights."""

    def make(**settings) -> BatchMaker:
        config = TrainingConfig(NAME, "", batch_size=3, width=64, height=64, latent_sampling="deterministic", **settings)
        table = VectorTable.of({NAME: Embedding(NAME, {"clip_l": torch.ones(2, 64)})}, {"clip_l": 64}, "cpu")
        prompts = PromptMaker(config, ["[name], [filewords]"], ["zero", "one", "two"], model.conditioner, table)
        means = marked(8, 8, 8, 0), marked(2, 8, 16, 100)
        buckets = [
            LatentBucket(LatentMoments(mean, torch.zeros_like(mean), True), pictures, mean[:, :1] + 1)
            for mean, pictures in zip(means, ((0, 2, 2, 2), (1,)))
        ]
        return BatchMaker(config, buckets, prompts, noise_device="cpu", repeats=[1, 1, 2])

    return make


def test_a_batch_has_one_size_and_its_own_weights(sized):
    batches = sized()
    for _ in range(12):
        batch = batches.next()
        assert batch.latents.shape in ((3, 4, 8, 8), (3, 4, 8, 16))
        assert batch.noise.shape == batch.latents.shape
        assert torch.equal(batch.weights, batch.latents[:, :1] + 1)


def test_crops_flips_and_repeats_come_as_often_as_they_should(sized):
    batches, seen = sized(), Counter()
    for _ in range(400):
        seen.update(int(latent.flatten()[0]) for latent in batches.next().latents)
    picture = {0: 0, 1: 2, 2: 2, 3: 2, 100: 1}
    shown, mirrored = Counter(), Counter()
    for row, count in seen.items():
        side, view = divmod(row % 100, 4 if row < 100 else 1)
        shown[picture[view + row // 100 * 100]] += count
        mirrored[side] += count
    assert shown == {0: 300, 1: 300, 2: 600}  # picture 2 repeats
    assert mirrored[1] / 1200 == pytest.approx(0.5, abs=0.05)
    assert all(seen[1 + crop] + seen[5 + crop] == pytest.approx(200, abs=45) for crop in range(3))


def test_a_caption_is_left_out_as_often_as_asked(model, maker):
    from random import Random

    config = TrainingConfig(NAME, "", caption_dropout=0.5, shuffle_tags=True, keep_tags=1, tag_dropout=0.5)
    table = VectorTable.of({NAME: Embedding(NAME, {"clip_l": torch.ones(2, 64)})}, {"clip_l": 64}, "cpu")
    prompts = PromptMaker(config, ["a [name], [filewords]"], ["kept, b, c"], model.conditioner, table)
    rng = Random(0)
    texts = [prompts.text(0, rng) for _ in range(400)]
    without = texts.count(f"a <{NAME}>")
    assert without == pytest.approx(200, abs=40)
    assert sum(text.startswith(f"a <{NAME}>, kept") for text in texts) == 400 - without
    assert {f"a <{NAME}>, kept, c, b", f"a <{NAME}>, kept"} <= set(texts)


@pytest.mark.parametrize("method", ["pulled", "classic"])
def test_fixed_batches_are_always_the_same_and_take_nothing_from_training(maker, method: str):
    undisturbed, disturbed = maker(method=method), maker(method=method)
    first = disturbed.fixed(7)
    assert sum(len(batch.latents) for batch in first) == 8
    strata = sorted(int(time) * 8 // 1000 for batch in first for time in batch.timesteps)
    assert len(set(strata)) >= 7  # the timesteps cover the whole range; rounding down may move one into the stratum below
    disturbed.next()
    for one, other in zip(first, disturbed.fixed(7)):
        assert torch.equal(one.noise, other.noise)
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.timesteps, other.timesteps)
        assert torch.equal(one.prompts.tokens.ids, other.prompts.tokens.ids)
    again = maker(method=method)
    again.fixed(7)
    for _ in range(4):
        assert torch.equal(undisturbed.next().noise, again.next().noise)


def test_fixed_batches_are_those_of_other_seeds_too(maker):
    """So that runs can be compared with each other; only latents that are sampled once depend on the seed."""
    one, other = (maker(seed=seed, latent_sampling="deterministic").fixed(4) for seed in (1, 2))
    assert all(torch.equal(a.latents, b.latents) and torch.equal(a.noise, b.noise) for a, b in zip(one, other))


def prompts_of(model, lines, captions, **settings) -> PromptMaker:
    table = VectorTable.of({NAME: Embedding(NAME, {"clip_l": torch.ones(2, 64)})}, {"clip_l": 64}, "cpu")
    return PromptMaker(TrainingConfig(NAME, "", **settings), lines, captions, model.conditioner, table)


def test_the_name_may_be_in_the_captions_alone(model):
    captions = ["a dotted [name] on the left", "[name], red, blue"]
    prompts = prompts_of(model, ["[filewords]"], captions, tag_dropout=0.9, caption_dropout=0.5)
    rng = random.Random(1)
    for _ in range(50):
        assert NAME in prompts.text(0, rng)
        assert NAME in prompts.text(1, rng)
    with pytest.raises(PromptError, match="neither has the caption 'a wall'") as caught:
        prompts_of(model, ["[name]", "[filewords]"], [*captions, "a wall"])
    assert caught.value.setting == "template"
