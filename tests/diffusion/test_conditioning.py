"""Emphasis as A1111's "Original", chunks next to each other, embeddings in prompts, and widths that do not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.checkpoints import TINY_CLIP, random_module
from tests.support.references import apart
from textual_inversion.diffusion.conditioning import TextConditioner, VectorTable, emphasise
from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError
from textual_inversion.prompts.tokenizer import END, START, default_tokenizer

NOTHING = VectorTable.of({}, {"clip_l": 64}, "cpu")
LONG = ", ".join(["a red circle on a blue ground"] * 14)


@pytest.fixture(scope="module")
def conditioner() -> TextConditioner:
    return TextConditioner({"clip_l": random_module(TINY_CLIP)}, default_tokenizer())


def embedding(name: str, rows: int, seed: int = 0, width: int = 64) -> Embedding:
    return Embedding(name, {"clip_l": torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))})


def table_of(*embeddings: Embedding) -> VectorTable:
    return VectorTable.of({e.name: e for e in embeddings}, {"clip_l": 64}, "cpu")


def encode(conditioner: TextConditioner, prompts: list[str], table: VectorTable = NOTHING, chunks: int = 0) -> torch.Tensor:
    return conditioner.encode(conditioner.tokenize(prompts, table, chunks), table.vectors).context


def original_emphasis(states: list[list[float]], weights: list[float]) -> list[list[float]]:
    """By hand: weigh each token's numbers, then scale all of them so that their mean is what it was."""
    weighed = [[number * weight for number in row] for row, weight in zip(states, weights)]
    before = sum(sum(row) for row in states)
    after = sum(sum(row) for row in weighed)
    return [[number * (before / after) for number in row] for row in weighed]


@given(st.lists(st.floats(0.25, 3), min_size=77, max_size=77))
def test_emphasis_keeps_the_mean(weights: list[float]) -> None:
    states = torch.randn(2, 77, 8, generator=torch.Generator().manual_seed(1)) + 1  # its mean is not near 0
    result = emphasise(states, torch.tensor([weights, [1.0] * 77]))
    assert apart(result[0], torch.tensor(original_emphasis(states[0].tolist(), weights))) < 1e-4
    assert apart(result[1], states[1]) < 1e-6


def test_emphasis_of_a_prompt_weighs_its_tokens(conditioner: TextConditioner) -> None:
    plain = encode(conditioner, ["a red circle"])[0]
    tokens = conditioner.tokenize(["a (red:1.5) circle"], NOTHING)
    assert tokens.weights is not None
    expected = original_emphasis(plain.tolist(), [1.0, 1.0, 1.5] + [1.0] * 74)
    assert apart(conditioner.encode(tokens, NOTHING.vectors).context[0], torch.tensor(expected)) < 1e-4


def test_no_emphasis_costs_nothing(conditioner: TextConditioner) -> None:
    assert conditioner.tokenize(["a red circle", "(a:1.0) red"], NOTHING).weights is None


def test_one_prompts_emphasis_leaves_the_others_alone(conditioner: TextConditioner) -> None:
    together = encode(conditioner, ["(a red:1.4) circle", "a blue square"])
    assert apart(together[1:], encode(conditioner, ["a blue square"])) < 1e-5


def test_chunks_stand_next_to_each_other(conditioner: TextConditioner) -> None:
    tokens = conditioner.tokenize([LONG], NOTHING)
    assert tokens.chunks == 2
    states = conditioner.encode(tokens, NOTHING.vectors).context
    assert states.shape == (1, 154, 64)
    for chunk in range(2):
        alone = conditioner.encoders["clip_l"](tokens.tokens[chunk : chunk + 1], NOTHING.vectors).hidden
        assert apart(states[:, 77 * chunk : 77 * (chunk + 1)], alone) < 1e-5


def test_breaks_make_chunks_of_their_own(conditioner: TextConditioner) -> None:
    states = encode(conditioner, ["a red circle BREAK a blue square"])
    separate = torch.cat((encode(conditioner, ["a red circle"]), encode(conditioner, ["a blue square"])), dim=1)
    assert apart(states, separate) < 1e-5


def test_short_prompts_are_filled_up_to_the_longest(conditioner: TextConditioner) -> None:
    states = encode(conditioner, ["a red circle", LONG])
    assert states.shape == (2, 154, 64)
    assert apart(states[:1, :77], encode(conditioner, ["a red circle"])) < 1e-5
    assert apart(states[:1, 77:], encode(conditioner, [""])) < 1e-5
    assert encode(conditioner, ["a red circle"], chunks=3).shape == (1, 231, 64)


def test_chunks_are_framed(conditioner: TextConditioner) -> None:
    ids = conditioner.tokenize([LONG, ""], NOTHING).tokens.ids
    assert ids.shape == (4, 77)
    assert ids[:, 0].eq(START).all()
    assert ids[:, -1].eq(END).all()


def test_an_embedding_is_the_same_as_its_rows_in_the_token_table(conditioner: TextConditioner) -> None:
    """The rows of three words that the prompt does not use are overwritten; naming the words is then naming the embedding."""
    mine = embedding("mine", 3)
    words = ["cat", "dog", "tree"]
    other = random_module(TINY_CLIP)
    ids = [conditioner.tokenizer.encode(word)[0] for word in words]
    with torch.no_grad():
        other.token_table[ids] = mine.vectors["clip_l"]
    expected = encode(TextConditioner({"clip_l": other}, conditioner.tokenizer), ["a photo of cat dog tree on grass"])
    assert apart(encode(conditioner, ["a photo of mine on grass"], table_of(mine)), expected) < 1e-5


def test_each_embedding_takes_its_own_rows(conditioner: TextConditioner) -> None:
    first, second = embedding("first", 2, seed=1), embedding("second", 3, seed=2)
    both = table_of(first, second)
    assert both.vectors.shape == (5, 64)
    tokens = conditioner.tokenize(["second and first"], both).tokens
    assert tokens.index[tokens.mask].tolist() == [2, 3, 4, 0, 1]
    assert apart(encode(conditioner, ["a first"], both), encode(conditioner, ["a first"], table_of(first))) < 1e-6


def test_weighted_names_are_emphasised_embeddings(conditioner: TextConditioner) -> None:
    table = table_of(embedding("mine", 2))
    assert torch.equal(encode(conditioner, ["a <mine:1.3> b"], table), encode(conditioner, ["a (mine:1.3) b"], table))


def test_gradients_reach_the_vectors_through_emphasis_and_chunks(conditioner: TextConditioner) -> None:
    table = table_of(embedding("mine", 2))
    tokens = conditioner.tokenize([f"{LONG}, (mine:1.3)"], table)
    vectors = table.vectors.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(conditioner.encode(tokens, vectors).context[:, 77:].square().sum(), vectors)
    assert gradient.abs().min() > 0


def test_no_embeddings_leave_one_row_for_the_shape() -> None:
    assert NOTHING.vectors.shape == (1, 64)
    assert NOTHING.sizes == {}


@pytest.mark.parametrize("wrong", [embedding("wide", 2, width=768), Embedding("other", {"clip_g": torch.zeros(1, 1280)})])
def test_an_embedding_for_another_model_is_refused(wrong: Embedding) -> None:
    with pytest.raises(EmbeddingError, match=f"'{wrong.name}' was made for {wrong.family}; this checkpoint's clip_l is 64 wide"):
        table_of(wrong)
