"""`<name>` and `<name:1.2>` in prompts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textual_inversion.prompts.chunks import chunk_prompt
from textual_inversion.prompts.emphasis import parse_emphasis
from textual_inversion.prompts.names import about_name, about_unknown, names_in, rewrite_names, unknown_names
from textual_inversion.prompts.tokenizer import default_tokenizer

KNOWN = ["sakura", "my-char", "Old Man", "v2.1", "EasyNegative", "neg (bad)", "<toy>", "end-", "'tis", "lora", "é"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a <sakura> tree", "a sakura tree"),
        ("a <sakura:1.2> tree", "a (sakura:1.2) tree"),
        ("<sakura>, <my-char>", "sakura, my-char"),
        ("(<sakura>)", "(sakura)"),
        ("(<sakura>:1.3)", "(sakura:1.3)"),
        ("<Sakura:1> <easynegative>", "(sakura:1) EasyNegative"),
        ("< sakura : 1.2 >", "(sakura:1.2)"),
        ("<my-char:-0.5> <v2.1:.8> <Old Man:+1.>", "(my-char:-0.5) (v2.1:.8) (Old Man:+1.)"),
        ("<neg (bad)> <neg (bad):1.1>", r"neg \(bad\) (neg \(bad\):1.1)"),
        ("<toy>, <toy:1.2>", "<toy> , (<toy>:1.2)"),
        # a neighbour that would become part of the name
        ("x<sakura>x", "x sakura x"),
        ("<sakura><sakura:1>", "sakura (sakura:1)"),
        ("<sakura:1>(((<my-char>", "(sakura:1)((( my-char"),
        ("<end->, <sakura>'s", "end- , sakura 's"),
        ("5<sakura>5", "5sakura5"),
        ("<é>t", "é t"),
        ("<sakura>\\b", "sakura \\b"),
        # not ours
        ("<other> <other:1.2>", "<other> <other:1.2>"),
        ("<lora:sakura:1> <lora:1> <hypernet:sakura> <LyCo:sakura:1>", "<lora:sakura:1> <lora:1> <hypernet:sakura> <LyCo:sakura:1>"),
        ("<lora>", "lora"),
        ("<sakura:much> <sakura:1e3> <sakura:> <sakura:1:2>", "<sakura:much> <sakura:1e3> <sakura:> <sakura:1:2>"),
        ("<sakura <> 1 < 2 > sakura", "<sakura <> 1 < 2 > sakura"),
        ("", ""),
    ],
)
def test_rewrites(text: str, expected: str) -> None:
    assert rewrite_names(text, KNOWN) == expected


def test_exact_spelling_goes_before_case() -> None:
    assert rewrite_names("<Cat> <cat> <CAT>", ["cat", "Cat"]) == "Cat cat Cat"
    assert rewrite_names("<Cat>", []) == "<Cat>"


def test_a_name_with_a_weight_in_it_is_a_name_first() -> None:
    assert rewrite_names("<a:1.2>", ["a", "a:1.2"]) == "a:1.2"


names = st.text("abé_'.-() 1\\", min_size=1, max_size=8).filter(
    lambda name: name.strip() == name and bool(default_tokenizer().encode(name))
)
around = st.text("xy,.'!-()[]:1 \\é\u0301", max_size=5)


@settings(max_examples=500, deadline=None)
@given(around, names, st.sampled_from(["", ":1", ":1.0", ":1.3", ":-2"]), around)
def test_a_tagged_name_is_always_found(before: str, name: str, weight: str, after: str) -> None:
    chunks = chunk_prompt(f"{before}<{name}{weight}>{after}", default_tokenizer(), {name: 2})
    spliced = [splice for chunk in chunks for splice in chunk.splices]
    assert [splice.name for splice in spliced][:2] == [name, name]


@settings(max_examples=300, deadline=None)
@given(st.text("ab<>:1.2()\\ ", max_size=20))
def test_text_without_a_known_tag_stays_as_it_is(text: str) -> None:
    assert rewrite_names(text, ["unheard"]) == text


@settings(max_examples=200, deadline=None)
@given(names)
def test_a_name_survives_the_emphasis_parser(name: str) -> None:
    assert "".join(span.text for span in parse_emphasis(rewrite_names(f"<{name}>", [name]))) == name


def test_only_names_that_the_prompts_may_mean_are_left() -> None:
    prompts = ["a <SAKURA:1.2> tree, an old  man", r"neg \(bad\), e\u0301"]
    assert names_in(prompts, KNOWN) == ["sakura", "Old Man", "neg (bad)", "\u00e9"]


@settings(max_examples=500, deadline=None)
@given(around, st.lists(names, max_size=3), st.sampled_from(["{}", "<{}>", "<{}:1.2>", "({}:2)", "BREAK {}"]), around)
def test_no_name_that_a_prompt_means_is_left_out(before: str, known: list[str], written: str, after: str) -> None:
    prompt = before + "".join(written.format(name) for name in known) + after
    for spelling in (prompt, prompt.upper()):
        found = {splice.name for chunk in chunk_prompt(spelling, default_tokenizer(), dict.fromkeys(known, 1)) for splice in chunk.splices}
        assert found <= set(names_in([spelling], known))


def test_tags_that_name_nothing_are_found_in_the_order_of_the_prompts() -> None:
    prompts = ["a <SAKURA:1.2> <typo> <Old Man> <toy> <typo:1.2> <typo> 1 < 2", "<lora:x:1>, <sakura:heavy>, sakura"]
    assert unknown_names(prompts, KNOWN) == ["<typo>", "<typo:1.2>", "<lora:x:1>", "<sakura:heavy>"]


@settings(max_examples=200, deadline=None)
@given(st.text("ab<>:1.2()\\ ", max_size=20))
def test_what_is_rewritten_is_known_and_nothing_else(text: str) -> None:
    unknown = unknown_names([text], ["a", "b"])
    assert all(tag in rewrite_names(text, ["a", "b"]) for tag in unknown)
    assert unknown_names([rewrite_names(text, ["a", "b"])], ["a", "b"]) == unknown


def test_tags_that_name_nothing_are_one_short_sentence() -> None:
    assert about_unknown([]) == ""
    assert about_unknown(["<a>"]) == "<a> is no name of an embedding that fits, and was taken as plain text."
    many = about_unknown([f"<{'x' * 5000}{index}>" for index in range(500)])
    assert "and 495 more" in many
    assert len(many) < 500


@pytest.mark.parametrize("name", ["red", "and", "A", "100", "AND", "a cat", "sks", "x", "7"])
def test_a_name_that_other_prompts_hold_is_told(name: str) -> None:
    assert f"“{name}” is " in about_name(name)


@pytest.mark.parametrize("name", ["zorb-x", "my-cat", "qxzorb", "v1.5", "by_someone", "zorbcat star"])
def test_a_name_that_means_nothing_yet_is_not(name: str) -> None:
    assert about_name(name) == ""
