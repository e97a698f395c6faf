"""Prompts that change from step to step, and prompts joined by AND, against A1111's own examples and its parser."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textual_inversion.prompts.schedule import Subprompt, changes, schedule, subprompts


@pytest.mark.parametrize(("text", "expected"), [
    ("test", [(10, "test")]),
    ("", [(10, "")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3 ]", [(3, "a "), (10, "a b")]),
    ("a [b::3] c", [(3, "a b c"), (10, "a  c")]),
    ("a [b:c:.25] d", [(2, "a b d"), (10, "a c d")]),
    ("[a:b:1.0]", [(10, "a")]),
    ("[a:b:1]", [(1, "a"), (10, "b")]),
    ("[a:b:0]", [(10, "b")]),
    ("[a:b:-4]", [(10, "b")]),
    ("[a:b:99]", [(10, "a")]),
    ("[a:b:1e1]", [(10, "a")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[x|[y:z:2]]", [(n, "x" if n % 2 else "y" if n <= 2 else "z") for n in range(1, 11)]),
    ("[fe|]male", [(n, "female" if n % 2 else "male") for n in range(1, 11)]),
    ("[a|b|c]", [(n, "abc"[(n - 1) % 3]) for n in range(1, 11)]),
    (r"\[a:b:3\] [c:d:3]", [(3, r"\[a:b:3\] c"), (10, r"\[a:b:3\] d")]),
    ("(a [b:3]:1.2)", [(3, "(a :1.2)"), (10, "(a b:1.2)")]),
])  # fmt: skip
def test_what_is_well_formed(text: str, expected: list[tuple[int, str]]) -> None:
    assert schedule(text, 10) == expected


@pytest.mark.parametrize("text", [
    "a [unbalanced",
    "[a]", "[[a]]", "(a:1.2)", "[a:b]", "[a:b:c:3]", "[a:b:x]", "a | b", "[a|b:3]", "[a|b:3] [c:d:3]", "[a:b:3] \\", ":", "]", "a:b:3",
])  # fmt: skip
def test_what_is_not_stays_as_it_is(text: str) -> None:
    assert schedule(text, 10) == [(10, text)]


def test_broken_brackets_leave_the_others_alone() -> None:
    assert schedule("((a][:b:c [d:3]", 10) == [(3, "((a][:b:c "), (10, "((a][:b:c d")]


@pytest.mark.parametrize(("text", "expected"), [
    ("a cat", [Subprompt("a cat")]),
    ("a cat AND a dog", [Subprompt("a cat"), Subprompt(" a dog")]),
    ("a cat :1.2 AND a dog:-.5 AND x", [Subprompt("a cat", 1.2), Subprompt(" a dog", -0.5), Subprompt(" x")]),
    ("SAND and BAND", [Subprompt("SAND and BAND")]),
    ("a (cat:1.2)", [Subprompt("a (cat:1.2)")]),
    ("AND", [Subprompt(""), Subprompt("")]),
    ("a: 3 ", [Subprompt("a", 3.0)]),
])  # fmt: skip
def test_prompts_joined_by_and(text: str, expected: list[Subprompt]) -> None:
    assert subprompts(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("[a|b]", True), ("x ([a:3])", True), ("a AND b", True), ("[a] (b:1.2)", False), ("a|b", False),
])  # fmt: skip
def test_whether_a_prompt_changes(text: str, expected: bool) -> None:
    assert changes(text) is expected


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab[]():|\\ .013\n", max_size=40), st.integers(1, 30))
def test_any_text_gives_rising_steps_up_to_the_last(text: str, steps: int) -> None:
    found = schedule(text, steps)
    ends = [end for end, _ in found]
    assert ends == sorted(set(ends))
    assert ends[-1] == steps
    assert ends[0] >= 1
    subprompts(text)


def test_deep_nesting_does_not_hang() -> None:
    assert schedule("[" * 20_000 + "a" + "]" * 20_000, 5)[-1][0] == 5
    assert schedule("[" * 20_000, 5)[-1][0] == 5
    assert schedule("[a:" * 50 + "b" + ":3]" * 50, 5)[-1][1].endswith("b")


_WELL_FORMED = st.recursive(
    st.sampled_from(["a", "bc ", ",", "(k:1.3)", r"\[", ""]),
    lambda inner: st.one_of(
        st.tuples(inner, inner, st.sampled_from(["3", "0.5", " 7 ", ".25", "12", "-1"])).map(lambda p: f"[{p[0]}:{p[1]}:{p[2]}]"),
        st.tuples(inner, st.sampled_from(["3", "0.5"])).map(lambda p: f"[{p[0]}:{p[1]}]"),
        st.lists(inner, min_size=2, max_size=3).map(lambda p: f"[{'|'.join(p)}]"),
        inner.map(lambda p: f"({p})"),
        st.tuples(inner, inner).map("".join),
    ),
    max_leaves=6,
)
_THEIRS = """
import json, sys
text = open(sys.argv[1]).read()
scope = {}
exec(compile(text[:text.index("ScheduledPromptConditioning = namedtuple")], "prompt_parser", "exec"), scope)
given = json.load(sys.stdin)
json.dump([scope["get_learned_conditioning_prompt_schedules"]([each], 10)[0] for each in given], sys.stdout)
"""


@pytest.mark.hosts
def test_well_formed_prompts_are_read_as_in_a1111() -> None:
    """Runs A1111's own parser in A1111's own environment: TI_A1111_DIR and TI_A1111_PYTHON say where they are."""
    place, python = os.environ.get("TI_A1111_DIR"), os.environ.get("TI_A1111_PYTHON")
    if not place or not python:
        pytest.skip("TI_A1111_DIR and TI_A1111_PYTHON are not set")
    texts: list[str] = []

    @settings(max_examples=500, deadline=None, database=None, derandomize=True)
    @given(_WELL_FORMED)
    def collect(text: str) -> None:
        texts.append(text)

    collect()
    parser = Path(place) / "modules" / "prompt_parser.py"
    done = subprocess.run([python, "-c", _THEIRS, str(parser)], input=json.dumps(texts), capture_output=True, text=True, check=True)
    for text, theirs in zip(texts, json.loads(done.stdout), strict=True):
        assert schedule(text, 10) == [tuple(pair) for pair in theirs], text
    assert sum(bool(re.search(r"\|", text)) for text in texts) > 20
