from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.preprocess.captions import CaptionRules, drop

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
    rules = CaptionRules(existing=existing)
    assert rules.caption("my old text", NEW, "name") == expected
    assert rules.caption(None, NEW, "name") == "a cat on a sofa, sofa, indoors"
    assert rules.caption("my old text", [], "name") == "my old text"
    assert rules.caption(None, [], "name") is None
    assert rules.needs_new("old") == (existing in ("replace", "prepend", "append"))
    assert rules.needs_new(None)


def test_an_empty_caption_stays_empty_and_is_not_the_file_name() -> None:
    assert CaptionRules().caption("", [], "name") == ""
    assert CaptionRules(existing="append").caption("", ["new"], "name") == "new"


def test_ends_and_dropped_words() -> None:
    rules = CaptionRules(prefix="photo of", suffix=", outdoors", drop_words="cat")
    assert rules.caption(None, ["a cat on a sofa"], "x") == "photo of on a sofa, outdoors"
    assert rules.caption(None, [], "black cat") == "photo of black, outdoors"
    assert CaptionRules(prefix="photo of").caption(None, [], "") == "photo of"
    assert CaptionRules(suffix="outdoors").caption("a dog", [], "") == "a dog outdoors"
    assert CaptionRules(prefix="photo of", existing="copy").caption("as it is", [], "") == "as it is"


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
    assert drop(caption, words) == left


TEXT = st.text(alphabet="ab ,._(x", max_size=12)


@given(st.none() | TEXT, st.lists(TEXT, max_size=2), st.sampled_from(["keep", "prepend", "append", "replace"]), TEXT, TEXT)
def test_captions_are_one_line_and_a_second_run_adds_nothing(
    old: str | None, new: list[str], existing: str, prefix: str, suffix: str
) -> None:
    rules = CaptionRules(existing=existing, prefix=prefix, suffix=suffix)
    once = rules.caption(old, new, "name")
    if once is None:
        return
    assert "\n" not in once
    assert rules.caption(once, [], "name") == once
