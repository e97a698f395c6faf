"""Emphasis as A1111's users know it, and against a second way to compute the weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textual_inversion.prompts.emphasis import BREAK, Span, parse_emphasis

UP, DOWN = 1.1, 1 / 1.1


def pairs(text: str) -> list[tuple[str, float]]:
    return [("BREAK" if span.is_break else span.text, round(span.weight, 6)) for span in parse_emphasis(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a green hill", [("a green hill", 1.0)]),
        ("", [("", 1.0)]),
        ("()", [("", 1.0)]),
        ("one (two) three", [("one ", 1.0), ("two", 1.1), (" three", 1.0)]),
        ("((a))", [("a", 1.21)]),
        ("[a]", [("a", DOWN)]),
        ("[[a]]", [("a", DOWN * DOWN)]),
        ("[(a)]", [("a", 1.0)]),
        ("(a:1.2)", [("a", 1.2)]),
        ("(a: 1.2 )", [("a", 1.2)]),
        ("(a:-0.5) b", [("a", -0.5), (" b", 1.0)]),
        ("(a:+2)(b:.5)(c:3.)", [("a", 2.0), ("b", 0.5), ("c", 3.0)]),
        ("(a:0)", [("a", 0.0)]),
        ("(a b, c:1.4), d", [("a b, c", 1.4), (", d", 1.0)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("(a:1.0)b", [("ab", 1.0)]),
        ("((a:1.2) b)", [("a", 1.32), (" b", 1.1)]),
        ("(a:1.2:1.3)", [("a:1.2", 1.3)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("[a:1.2]", [("a:1.2", DOWN)]),
        ("[a:1.2)]", [("a:1.2)", DOWN)]),
        ("time 12:30", [("time 12:30", 1.0)]),
        # unbalanced
        ("(a", [("a", 1.1)]),
        ("a (b [c", [("a ", 1.0), ("b ", 1.1), ("c", 1.0)]),
        ("a) b]", [("a) b]", 1.0)]),
        ("a:1.2)", [("a:1.2)", 1.0)]),
        ("([a)]", [("a", 1.0)]),
        ("(((a)", [("a", 1.331)]),
        # escapes
        (r"\(a\) \[b\]", [("(a) [b]", 1.0)]),
        (r"(a \(b\):1.3)", [("a (b)", 1.3)]),
        (r"a\\b", [("a\\b", 1.0)]),
        (r"\\(a)", [("\\", 1.0), ("a", 1.1)]),
        (r"a\b", [("ab", 1.0)]),
        ("(a\\", [("a", 1.1)]),
        # A1111's own documentation has a sentence with all of it; this is another one of that kind
        (
            "my (((tower:1.3)) [by] the (sea:0.5), fog, (((gulls)))!",
            [
                ("my ", 1.0),
                ("tower", 1.573),
                (" ", 1.1),
                ("by", 1.0),
                (" the ", 1.1),
                ("sea", 0.55),
                (", fog, ", 1.1),
                ("gulls", 1.4641),
                ("!", 1.1),
            ],
        ),
        # breaks
        ("a BREAK b", [("a", 1.0), ("BREAK", 1.0), ("b", 1.0)]),
        ("BREAK", [("BREAK", 1.0)]),
        (" a BREAK\n BREAK b ", [(" a", 1.0), ("BREAK", 1.0), ("BREAK", 1.0), ("b ", 1.0)]),
        ("a,BREAK,b", [("a,", 1.0), ("BREAK", 1.0), (",b", 1.0)]),
        ("BREAKFAST break _BREAK", [("BREAKFAST break _BREAK", 1.0)]),
        ("(a BREAK b:1.2) c", [("a", 1.2), ("BREAK", 1.0), ("b", 1.2), (" c", 1.0)]),
        ("(a) BREAK (b)", [("a", 1.1), ("BREAK", 1.0), ("b", 1.1)]),
    ],
)
def test_parses(text: str, expected: list[tuple[str, float]]) -> None:
    close: list[Any] = [(part, pytest.approx(weight, abs=1e-5)) for part, weight in expected]
    assert pairs(text) == close


def test_a_span_without_brackets_weighs_exactly_one() -> None:
    assert parse_emphasis("plain") == [Span("plain", 1.0)]
    assert parse_emphasis("BREAK") == [BREAK]


trees = st.recursive(
    st.text("abc ,", min_size=1, max_size=4),
    lambda inner: st.tuples(st.sampled_from(["(", "[", "2"]), st.lists(inner, min_size=1, max_size=3)),
    max_leaves=12,
)


def write(tree: Any) -> str:
    if isinstance(tree, str):
        return tree
    kind, parts = tree
    inner = "".join(write(part) for part in parts)
    return {"(": f"({inner})", "[": f"[{inner}]", "2": f"({inner}:2)"}[kind]


def letters(tree: Any, weight: float) -> list[tuple[str, float]]:
    if isinstance(tree, str):
        return [(letter, weight) for letter in tree]
    kind, parts = tree
    factor = {"(": UP, "[": DOWN, "2": 2.0}[kind]
    return [found for part in parts for found in letters(part, weight * factor)]


@settings(max_examples=200, deadline=None)
@given(trees)
def test_nested_brackets_multiply(tree: Any) -> None:
    found = [(letter, span.weight) for span in parse_emphasis(write(tree)) for letter in span.text]
    close: list[Any] = [(letter, pytest.approx(weight)) for letter, weight in letters(tree, 1.0)]
    assert found == close


@settings(max_examples=300, deadline=None)
@given(st.text("ab()[]\\:1.- BREAK", max_size=30))
def test_no_text_is_an_error_and_none_of_it_is_lost(text: str) -> None:
    spans = parse_emphasis(text)
    assert spans
    assert all(a.is_break or b.is_break or a.weight != b.weight for a, b in pairwise(spans))
    joined = "".join(span.text for span in spans)
    for letter in "ab":
        assert joined.count(letter) == text.count(letter)


@settings(max_examples=200, deadline=None)
@given(st.text("ab()[]\\:1.- ", min_size=1, max_size=30))
def test_escaped_text_is_plain_text(text: str) -> None:
    escaped = "".join("\\" + letter if letter in "()[]\\" else letter for letter in text)
    assert parse_emphasis(escaped) == [Span(text)]
