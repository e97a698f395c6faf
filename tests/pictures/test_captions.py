from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.folder import caption_for


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("a red cat.png", "a red cat"),
        ("00012-0-my_red_cat.png", "my_red_cat"),
        ("001 cat.jpg", "cat"),
        ("12_cat 3.jpg", "cat 3"),
        ("--cat.v2.webp", "cat.v2"),
        ("0001.png", ""),
        ("cat-12.png", "cat-12"),
        ("1girl, solo.png", "1girl, solo"),
        ("00000-0-1girl, solo.png", "1girl, solo"),
        ("00001-0-3d render, blue.png", "3d render, blue"),
        ("2 - 35mm.png", "35mm"),
        ("-_ .png", ""),
    ],
)
def test_the_file_name_without_its_numbering(name: str, caption: str) -> None:
    assert caption_for(Path("nowhere") / name) == caption


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        ("a café, blue\n".encode(), "a café, blue"),
        (b"\xef\xbb\xbfa cat", "a cat"),
        ("a café".encode("latin-1"), "a café"),
        ("a café".encode("utf-16"), "a café"),
        ("the star’s place, café".encode("cp1252"), "the star’s place, café"),
        ("white background".encode("utf-16-le"), "white background"),
        ("white background".encode("utf-16-be"), "white background"),
        (b"a photo of cats\0", "a photo of cats"),
        ("été\0".encode(), "été"),
        (b"\x81 undefined in Windows-1252", "\x81 undefined in Windows-1252"),
        (b"two\r\nlines  here\n", "two lines here"),
        (b"", ""),
    ],
)
def test_the_text_beside_the_picture_comes_first(tmp_path: Path, data: bytes, caption: str) -> None:
    (tmp_path / "1-name.txt").write_bytes(data)
    assert caption_for(tmp_path / "1-name.png") == caption


def test_only_the_last_ending_is_exchanged(tmp_path: Path) -> None:
    (tmp_path / "a.b.txt").write_text("right")
    (tmp_path / "a.txt").write_text("wrong")
    assert caption_for(tmp_path / "a.b.png") == "right"


@given(st.binary(max_size=60))
def test_any_bytes_give_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "any.txt").write_bytes(data)
    caption = caption_for(folder / "any.png")
    assert len(caption.splitlines()) <= 1
    assert caption == caption.strip()


def test_a_caption_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DatasetError, match=r"a\.txt cannot be read \(Permission denied\)"):
        caption_for(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("regex", "join", "caption"),
    [("", " ", "red_fox-in snow"), (r"[a-z]+", ", ", "red, fox, in, snow"), (r"_(\w)", "+", "f"), ("[0-9]", " ", "")],
)
def test_words_of_a_file_name(regex: str, join: str, caption: str) -> None:
    assert caption_for("nowhere/0001-red_fox-in snow.png", regex, join) == caption
