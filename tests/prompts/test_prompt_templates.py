"""Template files, and the tags of the captions that fill them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from textual_inversion.errors import ConfigError, PromptError
from textual_inversion.prompts.templates import (
    DEFAULT_TEMPLATE,
    drop_tags,
    fill,
    list_templates,
    read_template,
    shuffle_tags,
    split_tags,
    template_folder,
)

CAPTION = "red hat,  snow , ,blue sky, old (worn) boots"
TAGS = ["red hat", "snow", "blue sky", "old (worn) boots"]


@pytest.mark.parametrize(
    ("line", "caption", "expected"),
    [
        ("a photo of [name]", "", "a photo of cat-toy"),
        ("a photo of [name]", "on grass", "a photo of cat-toy"),
        ("a photo of [name], [filewords]", "red hat, snow", "a photo of cat-toy, red hat, snow"),
        ("a photo of [name], [filewords]", "", "a photo of cat-toy"),
        ("[filewords], by [name]", " ", "by cat-toy"),
        ("[name] and [name]", "", "cat-toy and cat-toy"),
        ("[filewords]", "[name] on a bench", "cat-toy on a bench"),
    ],
)
def test_fills(line: str, caption: str, expected: str) -> None:
    assert fill(line, "cat-toy", caption) == expected


def test_reads_lines_and_skips_blanks_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff# my words\r\n\r\n  a [name]  \r\n[name], [filewords]".encode())
    assert read_template(path) == ["a [name]", "[name], [filewords]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompt"),
        (b"\n# only this\n\n", "holds no prompt"),
        (b"a [name]\n\na photo of a cat\n", r"no \[name\] in line 3, 'a photo of a cat'"),
        (b"a [name] \xff\xfe", "not UTF-8"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.txt"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=message) as error:
        read_template(path)
    assert (error.value.path, error.value.setting) == (path, "template")


@pytest.mark.parametrize("missing", ["absent.txt", ""])
def test_a_template_that_is_absent_or_a_folder_is_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(PromptError) as error:
        read_template(tmp_path / missing)
    assert error.value.path == tmp_path / missing
    with pytest.raises(PromptError) as error:
        list_templates(tmp_path / "absent")
    assert error.value.path == tmp_path / "absent"


def test_lists_text_files_only(tmp_path: Path) -> None:
    for name in ("b.txt", "A.TXT", "notes.md"):
        (tmp_path / name).write_text("[name]")
    (tmp_path / "folder.txt").mkdir()
    assert list_templates(tmp_path) == ["A.TXT", "b.txt"]


def test_the_shipped_templates_are_good() -> None:
    shipped = list_templates(template_folder())
    assert shipped == ["name_filewords.txt", "style.txt", "style_filewords.txt", "subject.txt", "subject_filewords.txt"]
    assert DEFAULT_TEMPLATE in shipped
    for file in shipped:
        lines = read_template(template_folder() / file)
        assert 12 <= len(lines) <= 25 or file == "name_filewords.txt"
        assert len(set(lines)) == len(lines)
        assert all(("[filewords]" in line) == ("filewords" in file) for line in lines)
        assert all(line == fill(line, "[name]", "[filewords]") for line in lines)


def test_shuffles_all_tags_the_same_way_for_the_same_seed() -> None:
    once = shuffle_tags(CAPTION, random.Random(3))
    assert once == shuffle_tags(CAPTION, random.Random(3))
    assert sorted(once.split(", ")) == sorted(TAGS)
    assert len({shuffle_tags(CAPTION, random.Random(seed)) for seed in range(60)}) > 15


def test_drops_none_or_all_at_the_ends() -> None:
    assert drop_tags(CAPTION, 0.0, random.Random(0)) == ", ".join(TAGS)
    assert drop_tags(CAPTION, 1.0, random.Random(0)) == ""
    assert drop_tags("", 0.5, random.Random(0)) == shuffle_tags(" , ", random.Random(0)) == ""


def test_drops_as_often_as_asked_and_keeps_the_order() -> None:
    rng = random.Random(1)
    kept = [split_tags(drop_tags("a, b, c, d", 0.25, rng)) for _ in range(2000)]
    assert all(tags == sorted(tags) for tags in kept)
    assert sum(len(tags) for tags in kept) / 8000 == pytest.approx(0.75, abs=0.03)


def test_later_draws_do_not_depend_on_the_probability() -> None:
    first, second = random.Random(5), random.Random(5)
    drop_tags(CAPTION, 0.0, first)
    drop_tags(CAPTION, 0.9, second)
    assert first.random() == second.random()


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_chance_outside_its_range_is_an_error(probability: float) -> None:
    with pytest.raises(ConfigError) as error:
        drop_tags(CAPTION, probability, random.Random(0))
    assert error.value.setting == "tag_dropout"


def test_the_first_tags_stay_where_they_are() -> None:
    orders = {shuffle_tags(CAPTION, random.Random(seed), keep=2) for seed in range(20)}
    assert len(orders) == 2
    assert all(order.startswith("red hat, snow, ") for order in orders)
    assert drop_tags(CAPTION, 1.0, random.Random(0), keep=2) == "red hat, snow"
    assert drop_tags(CAPTION, 1.0, random.Random(0), keep=9) == shuffle_tags(CAPTION, random.Random(0), keep=9) == ", ".join(TAGS)


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ("a photo of a {}", "a photo of a <x>"),
        ('"a rendering of a {}",', "a rendering of a <x>"),
        ("a picture of {name}, [filewords]", "a picture of <x>, a hat"),
        ("a photo of <embedding>", "a photo of <x>"),
        ("a photo of [name]", "a photo of <x>"),
    ],
)
def test_templates_of_other_tools(tmp_path: Path, line: str, prompt: str) -> None:
    (tmp_path / "t.txt").write_text(f"# a comment\n\n{line}\n")
    assert [fill(each, "<x>", "a hat") for each in read_template(tmp_path / "t.txt")] == [prompt]


@pytest.mark.parametrize("mark", ["[name]", "[trigger]", "<embedding>"])
def test_captions_of_other_tools_name_the_embedding(mark: str) -> None:
    assert fill("[filewords]", "<x>", f"a {mark} on a table") == "a <x> on a table"
