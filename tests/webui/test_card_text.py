"""What cards say and do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.embedding import Provenance
from textual_inversion.formats import FileInfo
from textual_inversion.hosts.webui import cards
from textual_inversion.hosts.webui.tables import path_below, unique_names
from textual_inversion.library import Entry

FOLDER = Path("/e")


def entry(name: str, path: str = "", reason: str = "", **provenance: Any) -> Entry:
    file = FOLDER / (path or f"{name}.pt")
    info = FileInfo(file, "A1111 .pt", {"clip_l": 768}, {"clip_l": 2}, "fp16", "*", Provenance(**provenance), 9000)
    return Entry(name, file, info, reason)


def test_facts_in_one_line() -> None:
    assert cards.facts(entry("a", step=300, checkpoint_name="sd15")) == "2 vectors · SD1 · step 300 · sd15"
    assert cards.facts(entry("a")) == "2 vectors · SD1"
    assert cards.facts(Entry("a", FOLDER / "a.pt", None, "It is damaged.")) == ""


def test_metadata_leaves_out_what_nobody_knows() -> None:
    told = cards.metadata(entry("a", step=0, reason="It does not fit."))
    assert told["step"] == 0
    assert told["problem"] == "It does not fit."
    assert "checkpoint" not in told
    assert cards.metadata(Entry("a", FOLDER / "a.pt", None, "It is damaged.")) == {"problem": "It is damaged."}


def test_names_are_unique_and_the_usable_one_has_the_plain_one() -> None:
    entries = [entry("cat", "sub/cat.pt", reason="taken"), entry("cat"), entry("cat", "sub/cat.safetensors", reason="taken"), entry("dog")]
    named = unique_names(entries, lambda item: item.name, [FOLDER])
    assert list(named) == ["cat (sub/cat.pt)", "cat", "cat (sub/cat.safetensors)", "dog"]
    assert named["cat"] is entries[1]


def test_a_path_is_told_from_its_folder_in_letters_that_can_be_sent() -> None:
    assert path_below(FOLDER / "sub" / "cat.pt", [FOLDER]) == "sub/cat.pt"
    assert path_below(FOLDER / "c\udcffat.pt", [FOLDER]) == "c\\udcffat.pt"
    assert path_below(Path("/elsewhere/c\udcffat.pt"), [FOLDER]) == "c\\udcffat.pt"


@given(st.lists(st.tuples(st.sampled_from(["a", "a (x.pt)", "b"]), st.sampled_from(["x.pt", "y.pt"]), st.booleans()), max_size=8))
def test_no_card_is_lost(found: list[tuple[str, str, bool]]) -> None:
    entries = [entry(name, path, "" if usable else "unfit") for name, path, usable in found]
    named = unique_names(entries, lambda item: item.name, [FOLDER])
    assert [id(item) for item in named.values()] == [id(item) for item in entries]


@pytest.mark.parametrize(
    ("word", "weight", "text", "plain"),
    [
        ("cat", None, "cat", True),
        ("my-cat", None, "my-cat", True),
        ("v2.1", None, "v2.1", False),  # as a pattern it would take v201 out of the prompt
        ("toy (old)", None, r"toy \(old\)", False),
        ("c++", None, "c++", False),
        ("cat", 1.0, "<cat:1>", True),
        ("toy (old)", 0.85, "<toy (old):0.85>", False),
    ],
)
def test_what_a_click_inserts(word: str, weight: float | None, text: str, plain: bool) -> None:
    assert cards.inserted(word, weight) == text
    assert cards.is_no_plain_pattern(text) is not plain


@pytest.mark.parametrize(
    ("noted", "weight"), [(None, 1), (0, 1), ("0.7", 0.7), (1.2, 1.2), ("much", 1), (float("nan"), 1), ([], 1), (1e9, 1)]
)
def test_the_preferred_weight(noted: Any, weight: float) -> None:
    assert cards.preferred_weight({} if noted is None else {"preferred weight": noted}) == weight


def test_html_and_javascript_are_escaped() -> None:
    told = cards.description("<b>", "<i>", "theirs", shown=True)
    assert "<b>" not in told
    assert "<i>" not in told
    assert told.endswith("theirs")
    assert cards.description("facts", "", "", shown=False) == ""
    assert '"it\\"s"' in cards.insert("txt2img", 'it"s', "")
    assert "\\n" in cards.explain("x", "a\nb")
