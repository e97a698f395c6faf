"""Every prompt of a generation, rewritten in place."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.hosts.webui.generation import has_own_hires_checkpoint, rewrite_all
from textual_inversion.hosts.webui.tables import spellings, word_of
from textual_inversion.library import Entry

KNOWN = {"cat": 1, "my-cat": 2, "Old Man": 1, "v2.1": 1, "toy (old)": 1}
LISTS = ("all_prompts", "all_negative_prompts", "all_hr_prompts", "all_hr_negative_prompts")
WEBUIS_PATTERN = re.compile(r"<(\w+):([^>]+)>")  # what a WebUI takes out of a prompt
TAGS = ["<cat>", "<cat:1.2>", "<CAT:.5>", "<my-cat:1>", "<Old Man:1.1>", "<toy (old):0.9>", "<dog:1.2>", "<lora:x:1>", "<lyco:cat>"]
AROUND = ["(", ")", "[", "]", ":", "|", " AND ", " BREAK ", ", ", "a", "\\", "1.2", " "]
whole_tags = st.lists(st.sampled_from(TAGS + AROUND), max_size=9).map("".join)
anything = st.lists(st.sampled_from([*TAGS, *AROUND, "<", ">"]), max_size=9).map("".join)


def generation(**given_lists: Any) -> Any:
    lists: dict[str, Any] = {name: ["<cat:1.2>", "<dog:1>", "x"] for name in LISTS}
    return SimpleNamespace(main_prompt="<cat>", main_negative_prompt="<my-cat:1>", **{"prompts": None, **lists, **given_lists})


def test_all_four_fields_and_the_grids_are_rewritten_in_the_same_lists() -> None:
    p = generation()
    lists = {name: getattr(p, name) for name in LISTS}
    rewrite_all(p, KNOWN)
    for name, texts in lists.items():
        assert getattr(p, name) is texts
        assert texts == ["(cat:1.2)", "<dog:1>", "x"]
    assert (p.main_prompt, p.main_negative_prompt) == ("cat", "(my-cat:1)")


def test_a_part_is_a_batch_of_the_lists_and_all_of_the_batch() -> None:
    p = generation(all_prompts=["<cat>"] * 4, prompts=["<cat:1>"] * 2)
    rewrite_all(p, KNOWN, part=slice(2, 4))
    assert p.all_prompts == ["<cat>", "<cat>", "cat", "cat"]
    assert p.prompts == ["(cat:1)"] * 2


def test_hires_may_know_other_names() -> None:
    p = generation()
    rewrite_all(p, KNOWN, {**KNOWN, "dog": 1})
    assert p.all_prompts[1] == "<dog:1>"
    assert p.all_hr_prompts[1] == p.all_hr_negative_prompts[1] == "(dog:1)"


def test_what_a_generation_lacks_is_passed_over() -> None:
    p = SimpleNamespace(all_prompts=["<cat>", None], all_negative_prompts=("<cat>",), all_hr_prompts=None)
    rewrite_all(p, KNOWN)
    assert p.all_prompts == ["cat", None]
    assert p.all_negative_prompts == ["cat"]


@given(st.lists(anything, min_size=1, max_size=4))
def test_twice_is_as_once(texts: list[str]) -> None:
    p = generation(all_prompts=list(texts))
    rewrite_all(p, KNOWN)
    once = list(p.all_prompts)
    rewrite_all(p, KNOWN)
    assert p.all_prompts == once


@given(whole_tags)
def test_the_webui_takes_out_what_is_not_ours_and_no_more(text: str) -> None:
    p = generation(all_prompts=[text])
    rewrite_all(p, KNOWN)
    assert WEBUIS_PATTERN.findall(p.all_prompts[0]) == [
        found for found in WEBUIS_PATTERN.findall(text) if found[0] in ("dog", "lora", "lyco")
    ]


@pytest.mark.parametrize(
    ("given_values", "expected"),
    [
        ({}, False),
        ({"enable_hr": True}, False),
        ({"enable_hr": True, "hr_checkpoint_name": None}, False),
        ({"enable_hr": True, "hr_checkpoint_name": "Use same checkpoint"}, False),
        ({"enable_hr": True, "hr_checkpoint_name": "other"}, True),
        ({"enable_hr": False, "hr_checkpoint_name": "other"}, False),
    ],
)
def test_another_checkpoint_for_hires(given_values: dict[str, Any], expected: bool) -> None:
    assert has_own_hires_checkpoint(SimpleNamespace(**given_values)) is expected


def test_the_webuis_spelling_goes_first() -> None:
    entry = Entry("toy _old_", Path("toy (old).pt"), None, "")
    assert spellings(entry) == ["toy (old)", "toy _old_"]
    assert word_of(entry, {}) == "toy (old)"
    assert word_of(entry, {"toy _old_": 1}) == "toy _old_"
    info = SimpleNamespace(word="inner", stored_name=None)
    assert spellings(Entry("inner", Path("many.pt"), info, "")) == ["inner"]  # type: ignore[arg-type]
    info = SimpleNamespace(word=None, stored_name="inside")
    assert spellings(Entry("card", Path("card.png"), info, "")) == ["card", "inside"]  # type: ignore[arg-type]
