"""The training methods: where vectors start, and how long they stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from textual_inversion import formats
from textual_inversion.diffusion.model import WordSize
from textual_inversion.settings.training import METHODS, TrainingConfig
from textual_inversion.training.methods import optimizer_of, start_at_word_length
from textual_inversion.training.optimizer import PulledAdamW, SphericalAdam
from textual_inversion.training.trainer import train

WORDS = [WordSize(16, 0.4)]


def config_of(method: str, **changes: object) -> TrainingConfig:
    return TrainingConfig("x", "y", method=method, **changes)  # type: ignore[arg-type]


def norms(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.norm(dim=1)


def test_new_vectors_get_the_length_of_words_and_trained_ones_keep_theirs() -> None:
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    new = start_at_word_length(vectors, WORDS, config_of("pulled", norm_factor=1.5), is_new=True)
    torch.testing.assert_close(norms(new), torch.full((3,), 0.6))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(new, vectors), torch.ones(3))
    assert torch.equal(start_at_word_length(vectors, WORDS, config_of("pulled"), is_new=False), vectors)


def test_rows_of_zeros_get_a_direction_from_the_seed() -> None:
    vectors = torch.zeros(2, 16)
    one, same, other = (start_at_word_length(vectors, WORDS, config_of("pulled", seed=seed), is_new=True) for seed in (1, 1, 2))
    torch.testing.assert_close(norms(one), torch.full((2,), 0.4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


def test_pulled_vectors_stay_near_their_length_where_adamws_grow() -> None:
    start = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)) * 0.05  # about 0.4 long
    lengths = {}
    for method in ("pulled", "classic"):
        vectors = start.clone()
        optimizer = optimizer_of(vectors, config_of(method), [WordSize(64, 0.4)])
        optimizer.learning_rate.fill_(0.02)
        for number in range(200):
            optimizer.step(torch.randn(2, 64, generator=torch.Generator().manual_seed(number)) - 0.3)
        lengths[method] = norms(vectors).mean() / norms(start).mean()
    assert lengths["classic"] > 3
    assert 0.8 < lengths["pulled"] < 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_pulled_step_that_is_not_finite_changes_nothing(bad: float) -> None:
    vectors = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    optimizer = PulledAdamW(vectors, vectors.norm(dim=1, keepdim=True))
    optimizer.learning_rate.fill_(0.1)
    optimizer.step(torch.ones(2, 8))
    before = vectors.clone()
    optimizer.step(torch.full((2, 8), bad))
    assert torch.equal(vectors, before)


def test_a_rate_that_breaks_everything_is_seen() -> None:
    vectors = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    optimizer = PulledAdamW(vectors, torch.ones(2, 1))
    optimizer.learning_rate.fill_(1e38)
    optimizer.step(torch.ones(2, 8))
    assert vectors.abs().min() > 1e37  # not pulled to zero, where the loss would look fine


def test_vectors_are_pulled_to_the_length_of_words_unless_theirs_is_their_own() -> None:
    """However often a run is interrupted and goes on, its vectors do not creep away; those of classic training keep their length."""
    near, long = torch.full((1, 4), 0.25), torch.full((1, 4), 2.0)  # lengths 0.5 and 4
    optimizer = optimizer_of(torch.cat((near, long)), config_of("pulled"), [WordSize(4, 0.4)])
    assert isinstance(optimizer, PulledAdamW)
    torch.testing.assert_close(optimizer.lengths, torch.tensor([[0.4], [4.0]]))


def test_each_method_has_its_optimizer() -> None:
    kinds = [type(optimizer_of(torch.ones(1, 4), config_of(method), [WordSize(4, 0.4)])).__name__ for method in METHODS]
    assert kinds == ["PulledAdamW", "SphericalAdam", "AdamW"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"gradient_accumulation_steps": 2, "buckets": True}, {"alpha_weight": True}])
def test_every_method_trains_in_every_way(config, model, folder, vectors, method, changes):
    start = vectors()
    learned = train(replace(config, method=method, learning_rate="auto", **changes), model, folder).vectors["clip_l"]
    assert torch.isfinite(learned).all()
    assert not torch.equal(learned, start)
    if method == "directional":
        torch.testing.assert_close(norms(learned), torch.full((2,), model.word_norm))


def test_a_classic_file_goes_on_at_its_own_length(config, model, folder, vectors):
    train(replace(config, steps=3, learning_rate="0.1"), model, folder)
    long = norms(vectors())
    learned = train(replace(config, method="directional", steps=6), model, folder).vectors["clip_l"]
    torch.testing.assert_close(norms(learned), long)


def test_a_file_of_another_tool_without_a_step_keeps_its_vectors(config, model, folder):
    """Only an embedding that was created here is new; kohya's and diffusers' files say nothing of steps."""
    theirs = torch.full((2, 64), 0.5)
    embedding = formats.load(folder / "thing.safetensors").with_vectors({"clip_l": theirs})
    formats.save(replace(embedding, provenance=replace(embedding.provenance, step=None)), folder / "thing.safetensors", overwrite=True)
    train(replace(config, method="pulled", learning_rate="1e-9"), model, folder)
    assert (formats.load(folder / "thing.safetensors").vectors["clip_l"] - theirs).abs().max() < 1e-5


def test_the_state_of_one_method_serves_another(config, model, folder):
    events: list[object] = []
    for steps, method in ((3, "classic"), (5, "directional"), (7, "pulled")):
        train(replace(config, steps=steps, method=method, save_optimizer=True), model, folder, listener=events.append)
    assert formats.load(folder / "thing.safetensors").provenance.step == 7
    assert not any("begins anew" in getattr(event, "text", "") for event in events)


def test_directional_prior_reaches_the_optimizer() -> None:
    optimizer = optimizer_of(torch.ones(1, 4), config_of("directional", prior=0.5), [WordSize(4, 0.4)])
    assert isinstance(optimizer, SphericalAdam)
    assert optimizer.prior == 0.5
