from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.preprocess.captioning import Describer, compose_caption, drop_words
from textual_inversion.settings.preprocessing import PreprocessConfig


def rules(**values: str) -> PreprocessConfig:
    return PreprocessConfig("from", "to", **values)  # type: ignore[arg-type]


NEW = ["a cat on a sofa", "sofa,  indoors"]


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ("keep", "my old text"),
        ("copy", "my old text"),
        ("replace", "a cat on a sofa, sofa, indoors"),
        ("prepend", "my old text, a cat on a sofa, sofa, indoors"),
        ("append", "a cat on a sofa, sofa, indoors, my old text"),
    ],
)
def test_what_becomes_of_an_existing_caption(existing: str, expected: str) -> None:
    """`prepend` and `append` say where the existing one goes, as A1111's option does."""
    config = rules(existing_captions=existing)
    assert compose_caption(config, "my old text", NEW, "name") == expected
    assert compose_caption(config, None, NEW, "name") == "a cat on a sofa, sofa, indoors"
    assert compose_caption(config, "my old text", [], "name") == "my old text"
    assert compose_caption(config, None, [], "name") is None
    describer = Describer(replace(config, captioners=("mine",)), {"mine": lambda image: "words"})
    assert describer.is_needed("old") == (existing in ("replace", "prepend", "append"))
    assert describer.is_needed(None)
    assert not Describer(config, {}).is_needed(None)


def test_an_empty_caption_stays_empty_and_is_not_the_file_name() -> None:
    assert compose_caption(rules(), "", [], "name") == ""
    assert compose_caption(rules(existing_captions="append"), "", ["new"], "name") == "new"


def test_ends_and_dropped_words() -> None:
    config = rules(caption_prefix="photo of", caption_suffix=", outdoors", drop_words="cat")
    assert compose_caption(config, None, ["a cat on a sofa"], "x") == "photo of on a sofa, outdoors"
    assert compose_caption(config, None, [], "black cat") == "photo of black, outdoors"
    assert compose_caption(rules(caption_prefix="photo of"), None, [], "") == "photo of"
    assert compose_caption(rules(caption_suffix="outdoors"), "a dog", [], "") == "a dog outdoors"
    assert compose_caption(rules(caption_prefix="photo of", existing_captions="copy"), "as it is", [], "") == "as it is"


@pytest.mark.parametrize(
    ("caption", "words", "left"),
    [
        ("a cat on the sofa", "cat", "on the sofa"),
        ("a photo of the Black Cat, cats", "black_cat", "a photo of, cats"),
        ("1girl, blue_eyes, smile", "blue eyes, 1girl", "smile"),
        ("concatenate cat-like", "cat", "concatenate -like"),
        ("Ein Mädchen, mädchen", "Mädchen", "Ein"),
        ("c++, c", "c++", "c"),
        ("nothing, to drop", " , ", "nothing, to drop"),
    ],
)
def test_words_are_dropped_as_wholes_with_their_articles(caption: str, words: str, left: str) -> None:
    assert drop_words(caption, words) == left


TEXT = st.text(alphabet="ab ,._(x", max_size=12)


@given(st.none() | TEXT, st.lists(TEXT, max_size=2), st.sampled_from(["keep", "prepend", "append", "replace"]), TEXT, TEXT)
def test_captions_are_one_line_and_a_second_run_adds_nothing(
    old: str | None, new: list[str], existing: str, prefix: str, suffix: str
) -> None:
    config = rules(existing_captions=existing, caption_prefix=prefix, caption_suffix=suffix)
    once = compose_caption(config, old, new, "name")
    if once is None:
        return
    assert "\n" not in once
    assert compose_caption(config, once, [], "name") == once
