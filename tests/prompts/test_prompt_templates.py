"""Template files and what fills them."""

from __future__ import annotations

from pathlib import Path

import pytest

from textual_inversion.errors import PromptError
from textual_inversion.prompts.templates import DEFAULT_TEMPLATE, fill, list_templates, read_template, template_folder


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
    with pytest.raises(PromptError, match=message) as caught:
        read_template(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("missing", ["absent.txt", ""])
def test_a_template_that_is_absent_or_a_folder_is_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(PromptError, match="cannot be read"):
        read_template(tmp_path / missing)
    with pytest.raises(PromptError, match="cannot be read"):
        list_templates(tmp_path / "absent")


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
