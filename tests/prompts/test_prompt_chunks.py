"""Chunks against transformers' padding and against a second way to cut, and the rules that always hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from textual_inversion.errors import PromptError
from textual_inversion.prompts.chunks import Chunk, Splice, chunk_prompt, count_tokens
from textual_inversion.prompts.tokenizer import END, START, Tokenizer, default_tokenizer

CAT, COMMA = 2368, 267
NONE: Mapping[str, int] = {}


def content(chunk: Chunk) -> list[int | str]:
    """What lies between start and end, each vector written as name#index."""
    spliced = {splice.position: f"{splice.name}#{splice.index}" for splice in chunk.splices}
    length = chunk.ids.index(END) - 1
    return [spliced.get(i, chunk.ids[i]) for i in range(1, length + 1)]


def lengths(text: str, embeddings: Mapping[str, int] = NONE) -> list[int]:
    return [len(content(chunk)) for chunk in chunk_prompt(text, default_tokenizer(), embeddings)]


@pytest.mark.parametrize("text", ["", "a photo of a cat", "A cat, a DOG; 2 birds!", " ".join(["cat"] * 75), "naïve 桜 😀"])
def test_a_short_prompt_is_what_transformers_pads(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    padded = reference(text, padding="max_length", max_length=77)["input_ids"]
    assert chunk_prompt(text, tokenizer, NONE) == [Chunk(tuple(padded), (1.0,) * 77, ())]


@pytest.mark.parametrize("text", ["", "a cat", " ".join(["cat"] * 75)])
def test_pads_with_another_id_behind_one_end_token(tokenizer: Tokenizer, text: str) -> None:
    (chunk,) = chunk_prompt(text, tokenizer, NONE, pad=0)
    ids = tokenizer.encode(text)
    assert chunk.ids == (START, *ids, END, *[0] * (75 - len(ids)))


def cut(ids: list[int]) -> list[list[int]]:
    """The rule in other words: look at the token that does not fit."""
    if len(ids) <= 75:
        return [ids]
    commas = [i for i in range(55, 75) if ids[i] == COMMA]
    end = commas[-1] + 1 if commas and ids[75] != COMMA else 75
    return [ids[:end], *cut(ids[end:])]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 40), st.integers(50, 80)), max_size=9))
@example([55, 19])
@example([54, 20])
@example([74, 3])
@example([75, 3])
@example([76])
@example([75, 75])
def test_long_prompts_are_cut_as_derived_in_another_way(runs: list[int]) -> None:
    text = ", ".join(" ".join(["cat"] * run) for run in runs)
    ids = default_tokenizer().encode(text)
    found = [content(chunk) for chunk in chunk_prompt(text, default_tokenizer(), NONE)]
    assert found == cut(ids)
    assert count_tokens(text, default_tokenizer(), NONE) == (75 * (len(found) - 1) + len(found[-1]), 75 * len(found))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0]),
        ("cat BREAK cat cat", [1, 2]),
        ("cat BREAK", [1]),
        ("BREAK cat", [0, 1]),
        ("cat BREAK BREAK cat", [1, 0, 1]),
        ("(cat BREAK cat:1.2)", [1, 1]),
        (" ".join(["cat"] * 75) + " BREAK cat", [75, 1]),
        (" ".join(["cat"] * 55) + ", " + " ".join(["cat"] * 20), [56, 20]),
        (" ".join(["cat"] * 54) + ", " + " ".join(["cat"] * 21), [75, 1]),
        (" ".join(["cat"] * 60) + ", " + " ".join(["toy"] * 8), [61, 16]),
        (" ".join(["cat"] * 74) + " toy", [74, 2]),
        (" ".join(["cat"] * 75) + ", cat", [75, 2]),
    ],
)
def test_where_chunks_end(text: str, expected: list[int]) -> None:
    assert lengths(text, {"toy": 2}) == expected


def test_weights_lie_on_tokens_and_vectors_only(tokenizer: Tokenizer) -> None:
    (chunk,) = chunk_prompt("a (cat:1.5), (sakura-b:0.5) [cat]", tokenizer, {"sakura-b": 2, "sakura": 1})
    assert chunk.ids[:9] == (START, 320, CAT, COMMA, 0, 0, CAT, END, END)
    assert chunk.weights[:9] == pytest.approx((1.0, 1.0, 1.5, 1.0, 0.5, 0.5, 1 / 1.1, 1.0, 1.0))
    assert set(chunk.weights[7:]) == {1.0}
    assert chunk.splices == (Splice(4, "sakura-b", 0), Splice(5, "sakura-b", 1))


EMBEDDINGS = {"sakura": 1, "sakura-b": 2, "My Char v2": 3, "dots...": 1, "<cat-toy>": 1, "neg (bad)": 1, "EasyNegative": 4}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sakura", ["sakura"]),
        ("a SAKURA, sakura-b", ["sakura", "sakura-b"]),
        ("sakurax sakur sakuras", []),
        ("sakura's sakura2 sakura-c", ["sakura"] * 3),
        ("my  char V2 easynegative", ["My Char v2", "EasyNegative"]),
        ("my char", []),
        ("<sakura:1.2><sakura-b>x", ["sakura", "sakura-b"]),
        ("<dots...>, <dots...:1.2>!", ["dots...", "dots..."]),
        ("<cat-toy>, <cat-toy>", ["<cat-toy>", "<cat-toy>"]),
        (r"neg \(bad\) <neg (bad)> neg (bad)", ["neg (bad)", "neg (bad)"]),
        ("<lora:sakura:1>", ["sakura"]),
        ("[sakura] ((sakura-b))", ["sakura", "sakura-b"]),
    ],
)
def test_names_are_found(tokenizer: Tokenizer, text: str, expected: list[str]) -> None:
    (chunk,) = chunk_prompt(text, tokenizer, EMBEDDINGS)
    assert [splice.name for splice in chunk.splices if splice.index == 0] == expected


def test_the_first_of_two_names_that_read_the_same_wins(tokenizer: Tokenizer) -> None:
    (chunk,) = chunk_prompt("CAT", tokenizer, {"Cat": 1, "cat": 2})
    assert chunk.splices == (Splice(1, "Cat", 0),)


def test_vectors_move_to_the_next_chunk_with_their_clause(tokenizer: Tokenizer) -> None:
    chunks = chunk_prompt(" ".join(["cat"] * 60) + ", toy " + " ".join(["cat"] * 14), tokenizer, {"toy": 3})
    assert [chunk.splices for chunk in chunks] == [(), (Splice(1, "toy", 0), Splice(2, "toy", 1), Splice(3, "toy", 2))]


@pytest.mark.parametrize("count", [0, 76])
def test_an_embedding_that_no_chunk_holds_is_an_error(tokenizer: Tokenizer, count: int) -> None:
    with pytest.raises(PromptError, match=f"'toy' in the prompt has {count} vectors"):
        chunk_prompt("a toy", tokenizer, {"toy": count})
    assert len(chunk_prompt("a cat", tokenizer, {"toy": count})) == 1


SIZES = {"toy": 1, "hat-a": 7, "hat": 2, "wall": 75}
pieces = st.lists(
    st.sampled_from(["cat", "cat cat cat", ",", "BREAK", *SIZES, "<toy>", "<hat-a:1.2>", "(cat:0.5)", "<wall:-1>"]), max_size=90
)


@settings(max_examples=200, deadline=None)
@given(pieces)
def test_nothing_is_lost_moved_or_split(parts: list[str]) -> None:
    chunks = chunk_prompt(" ".join(parts), default_tokenizer(), SIZES)
    assert chunks
    for chunk in chunks:
        assert len(chunk.ids) == len(chunk.weights) == 77
        assert chunk.ids[0] == START
        assert chunk.ids[-1] == END
        assert all(chunk.ids[splice.position] == 0 for splice in chunk.splices)
        check_whole(chunk.splices)
    assert [item for chunk in chunks for item in content(chunk)] == [item for part in parts for item in expand(part)]
    used, limit = count_tokens(" ".join(parts), default_tokenizer(), SIZES)
    assert limit == 75 * len(chunks)
    assert 0 <= used <= limit


def check_whole(splices: tuple[Splice, ...]) -> None:
    rest = list(splices)
    while rest:
        first = rest[0]
        whole = [Splice(first.position + i, first.name, i) for i in range(SIZES[first.name])]
        assert rest[: len(whole)] == whole
        del rest[: len(whole)]


def expand(part: str) -> Sequence[int | str]:
    plain = part.strip("<>()").split(":")[0]
    if plain in SIZES:
        return [f"{plain}#{i}" for i in range(SIZES[plain])]
    return {"BREAK": [], ",": [COMMA]}.get(plain, [CAT] * plain.count("cat"))


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.sampled_from([0, END]))
def test_any_text_makes_chunks(text: str, pad: int) -> None:
    chunks = chunk_prompt(text, default_tokenizer(), {"a": 2, "(": 1, "0:1": 5}, pad=pad)
    assert chunks
    assert all(len(chunk.ids) == len(chunk.weights) == 77 for chunk in chunks)
