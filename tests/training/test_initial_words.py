"""The search for words that describe the pictures, on the drawn world, whose true words are known."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from textual_inversion import formats
from textual_inversion.demo.run import PICTURES
from textual_inversion.diffusion.conditioning import TextConditioner
from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
from textual_inversion.errors import ConfigError
from textual_inversion.prompts.tokenizer import default_tokenizer
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.better_words import BetterWords
from textual_inversion.training.embedding_file import create_embedding
from textual_inversion.training.events import Event, Message
from textual_inversion.training.initial_words import find_initial_words
from textual_inversion.training.optimizer import SplitOptimizer
from textual_inversion.training.prepared import Prepared
from textual_inversion.training.search_plan import search_budget, search_rows, search_steps, usual_cost
from textual_inversion.training.step import TrainedVectors
from textual_inversion.training.trainer import train, train_together
from textual_inversion.training.word_fit import Budget, WordFit

NAME = "zorb"


@pytest.fixture(scope="module")
def tiny() -> StableDiffusion:
    return load_checkpoint(device="cpu", precision="fp32")


def prepared(model: StableDiffusion, folder: Path, words: str = "auto", vectors: int | str = "auto", first_row: int = 0) -> Prepared:
    path = create_embedding(model, NAME, words, vectors, folder)
    config = TrainingConfig(NAME, str(PICTURES), width=128, height=128, steps=150)
    each = Prepared(config, lambda event: None, path, formats.load(path))
    each.read(model, first_row)
    assert each.encode(model, lambda: False)
    return each


def found(each: Prepared, model: StableDiffusion, rows: int = 500, should_stop: Callable[[], bool] = lambda: False) -> list[str]:
    fit = each.word_fit(model, 12, Budget(rows, should_stop))
    return [fit.tokenizer.word(index) for index in find_initial_words(fit)]


def test_it_finds_what_the_pictures_show(tiny: StableDiffusion, tmp_path: Path) -> None:
    """They show a purple dotted star."""
    words = found(prepared(tiny, tmp_path), tiny)
    assert len(words) == 4
    assert len({"purple", "dotted", "star"} & set(words)) >= 2, words


def test_other_embeddings_of_the_run_change_nothing(tiny: StableDiffusion, tmp_path: Path) -> None:
    alone, behind = prepared(tiny, tmp_path / "a", vectors=2), prepared(tiny, tmp_path / "b", vectors=2, first_row=5)
    assert found(alone, tiny, rows=200) == found(behind, tiny, rows=200)


def test_every_word_is_one_token_with_a_vector_of_its_own(tiny: StableDiffusion, tmp_path: Path) -> None:
    each = prepared(tiny, tmp_path, vectors=2)
    fit = each.word_fit(tiny, 8, Budget(100))
    ids = find_initial_words(fit)
    rows = [row for index in ids for row in default_tokenizer().encode(fit.tokenizer.word(index))]
    assert len(rows) == 2
    assert torch.equal(fit.vectors_of(ids), tiny.text_encoder.token_table[torch.tensor(rows)].float())


def test_a_search_that_is_stopped_gives_the_words_it_has(tiny: StableDiffusion, tmp_path: Path) -> None:
    each = prepared(tiny, tmp_path, vectors=3)
    words = found(each, tiny, should_stop=lambda: True)
    assert len(words) == 3
    assert len(set(words)) == 1  # the first noun


def test_an_interrupted_search_is_done_by_the_next_run(tiny: StableDiffusion, tmp_path: Path) -> None:
    each = prepared(tiny, tmp_path, vectors=2)
    config = replace(each.config, steps=2)
    asked = iter([False] * 2)
    stopped = train(config, tiny, tmp_path, should_stop=lambda: next(asked, True))
    assert stopped.provenance.initializer_text == "auto"
    assert train(config, tiny, tmp_path).provenance.initializer_text != "auto"


def test_a_checkpoint_without_words_finds_none(tiny: StableDiffusion, tmp_path: Path) -> None:
    each = prepared(tiny, tmp_path)
    encoder = deepcopy(tiny.text_encoder)
    encoder.token_table.zero_()
    empty = replace(tiny, conditioner=TextConditioner({"clip_l": encoder}, tiny.conditioner.tokenizer))
    assert find_initial_words(WordFit(empty, each.batches.fixed(8), 4)) == []


def test_a_run_finds_its_words_and_says_so(tiny: StableDiffusion, tmp_path: Path) -> None:
    each = prepared(tiny, tmp_path)
    events: list[Event] = []
    trained = train(replace(each.config, steps=3), tiny, tmp_path, listener=events.append)
    words = trained.provenance.initializer_text
    assert words is not None
    assert words != "auto"
    assert any(words in event.text for event in events if isinstance(event, Message))
    assert formats.load(each.path).provenance.initializer_text == words
    events.clear()
    train(replace(each.config, steps=4), tiny, tmp_path, listener=events.append)  # the words stay
    assert not any("words" in event.text for event in events if isinstance(event, Message))


def test_words_that_were_given_stay(tiny: StableDiffusion, tmp_path: Path) -> None:
    each = prepared(tiny, tmp_path, words="shape", vectors=2)
    assert train(replace(each.config, steps=1), tiny, tmp_path).provenance.initializer_text == "shape"


def test_each_of_several_finds_its_own(tiny: StableDiffusion, tmp_path: Path) -> None:
    configs = []
    for name in ("one", "two"):
        create_embedding(tiny, name, "Auto ", 2, tmp_path)
        configs.append(TrainingConfig(name, str(PICTURES), width=128, height=128, steps=2, batch_size=2))
    together = train_together(configs, tiny, tmp_path)
    assert together[0].provenance.initializer_text == together[1].provenance.initializer_text != "auto"


def test_auto_words_have_four_vectors_unless_a_number_is_given(tiny: StableDiffusion, tmp_path: Path) -> None:
    assert formats.load(create_embedding(tiny, "a", "auto", "auto", tmp_path)).num_vectors == 4
    assert formats.load(create_embedding(tiny, "b", "AUTO", 7, tmp_path)).num_vectors == 7
    with pytest.raises(ConfigError):
        create_embedding(tiny, "c", "auto", "many", tmp_path)


def stuck_vectors(model: StableDiffusion) -> torch.Tensor:
    """Vectors that have learned colour and pattern, but took a wrong turn with the shape."""
    rows = [default_tokenizer().encode(word)[0] for word in ("purple", "dotted", "circle")]
    return model.text_encoder.token_table[torch.tensor(rows)].float()


def test_a_vector_that_took_a_wrong_turn_becomes_the_right_word(tiny: StableDiffusion, tmp_path: Path) -> None:
    each = prepared(tiny, tmp_path, words="shape", vectors=3)
    vectors = stuck_vectors(tiny)
    before = vectors.clone()
    replaced = BetterWords(each.word_fit(tiny, 16, Budget(10_000)), vectors).replace()
    assert "star" in dict(replaced).values()
    for row, _ in replaced:
        assert float(vectors[row].norm()) == pytest.approx(float(before[row].norm()), rel=1e-5)
    kept = [row for row in range(3) if row not in dict(replaced)]
    assert torch.equal(vectors[kept], before[kept])
    fit = each.word_fit(tiny, 16, Budget())
    assert (fit.losses(vectors) / fit.losses(before)).log().mean().exp() < 0.9


def test_vectors_that_fit_stay(tiny: StableDiffusion, tmp_path: Path) -> None:
    each = prepared(tiny, tmp_path, words="purple dotted star", vectors=3)
    vectors = each.table.vectors.clone()
    assert BetterWords(each.word_fit(tiny, 16, Budget(10_000)), vectors).replace() == []
    assert torch.equal(vectors, each.table.vectors)


@pytest.mark.parametrize("how", ["no budget", "stopped"])
def test_a_search_on_the_way_can_be_cut_short(tiny: StableDiffusion, tmp_path: Path, how: str) -> None:
    each = prepared(tiny, tmp_path, words="shape", vectors=3)
    fit = each.word_fit(tiny, 8, Budget(0 if how == "no budget" else 1000, lambda: how == "stopped"))
    assert BetterWords(fit, stuck_vectors(tiny)).replace() == []


def test_a_run_looks_for_words_three_times(tiny: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors that are replaced change in the file, start without momentum, and the run says which words they became."""
    each = prepared(tiny, tmp_path, words="shape", vectors=3)
    asked: list[int] = []

    def changed(self: BetterWords) -> list[tuple[int, str]]:
        asked.append(self.fit.budget.rows)
        self.vectors[1] = 0.25
        return [(1, "star")]

    monkeypatch.setattr(BetterWords, "replace", changed)
    events: list[Event] = []
    config = replace(each.config, steps=60, batch_size=1, width=64, height=64)
    train(config, tiny, tmp_path, listener=events.append)
    assert len(asked) == 3
    assert any("2 “star”" in event.text for event in events if isinstance(event, Message))
    train(replace(config, steps=110), tiny, tmp_path)  # a run that goes on does not look again
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("changes", "first_step", "expected"),
    [
        ({"steps": 400}, 0, (25, 50, 75)),
        ({"steps": 90}, 0, (15, 30, 45)),
        ({"steps": 59}, 0, ()),
        ({"steps": 400}, 20, (25, 50, 75)),  # interrupted before it had looked
        ({"steps": 400}, 25, (50, 75)),
        ({"steps": 400}, 75, ()),
        ({"steps": 400}, None, ()),  # learned elsewhere
        ({"steps": 400, "method": "classic"}, 0, ()),
        ({"steps": 400, "method": "directional"}, 0, (25, 50, 75)),
        ({"steps": 400, "vocabulary_search": False}, 0, ()),
    ],
)
def test_when_a_run_looks_for_words(changes: dict[str, object], first_step: int | None, expected: tuple[int, ...]) -> None:
    assert search_steps(TrainingConfig("x", "y", **changes), first_step) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("steps", "batch"), [(60, 1), (100, 2), (60, 8)])
def test_a_search_takes_a_sixth_of_the_run_at_most(tiny: StableDiffusion, tmp_path: Path, steps: int, batch: int) -> None:
    each = prepared(tiny, tmp_path, words="shape", vectors=3)
    config = replace(each.config, steps=steps, batch_size=batch)
    fit = each.word_fit(tiny, search_rows(config), Budget(search_budget(config)))
    BetterWords(fit, stuck_vectors(tiny)).replace()
    assert fit.budget.rows >= 0, "more was spent than there was"
    spent = search_budget(config) - fit.budget.rows
    assert spent <= steps * batch * 3 / 6  # a step costs three forward passes of each row
    assert 0.3 * spent <= usual_cost(fit.count, fit.rows, search_budget(config)) <= 3 * spent


@pytest.mark.parametrize("method", ["pulled", "directional"])
def test_a_replaced_vector_has_no_momentum(tiny: StableDiffusion, method: str) -> None:
    vectors = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) * 0.07
    trained = TrainedVectors(vectors, TrainingConfig("x", "y", method=method), torch.float32, tiny.words)
    trained.learning_rate.fill_(0.01)
    trained.gradient.copy_(torch.ones(3, 64).cumsum(1))
    assert not isinstance(trained.optimizer, SplitOptimizer)
    trained.update(torch.zeros(1, dtype=torch.int64))
    trained.optimizer.forget([1])
    assert not trained.optimizer.mean[1].any()
    assert trained.optimizer.square[1].any()  # the gradient is about as large as before
    assert trained.optimizer.mean[[0, 2]].any(dim=1).all()
