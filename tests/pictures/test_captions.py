from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.errors import DatasetError
from textual_inversion.pictures import captions
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
def test_any_bytes_give_one_line_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "any.txt").write_bytes(data)
    try:
        caption = caption_for(folder / "any.png")
    except DatasetError as error:
        assert "any.txt is in an encoding that cannot be told" in str(error)  # noqa: PT017  either is right
        return
    assert len(caption.splitlines()) <= 1
    assert caption == caption.strip()


def test_a_caption_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x")

    def refuse(path: Path, most: int) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("textual_inversion.pictures.captions.read_regular", refuse)
    with pytest.raises(DatasetError, match=r"a\.txt cannot be read \(Permission denied\)"):
        caption_for(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("regex", "join", "caption"),
    [("", " ", "red_fox-in snow"), (r"[a-z]+", ", ", "red, fox, in, snow"), (r"_(\w)", "+", "f"), ("[0-9]", " ", "")],
)
def test_words_of_a_file_name(regex: str, join: str, caption: str) -> None:
    assert caption_for("nowhere/0001-red_fox-in snow.png", regex, join) == caption


@pytest.mark.parametrize(
    "name",
    [
        *("IMG_20230101_123451", "DSC01234", "DSCN1234", "_DSC0001", "P1010001", "PXL_20230101_123451234.MP", "MVIMG_20230101", "100_0001"),
        *("Screenshot_2023-01-01 at 12.34.56", "WhatsApp Image 2023-01-01 at 12.34.56", "IMG-20230101-WA0001", "IMG_E1234", "image (1)"),
        *("download (3)", "images (5)", "ComfyUI_00001_", "微信图片_20230101", "mmexport1234567", "d41d8cd98f00b204e9800998ecf8427e"),
        *("123e4567-e89b-12d3-a456-426614174000", "Photo on 1-1-23 at 3.45 PM", "DSC_0001-edited", "frame_0001", "20230101_123451"),
    ],
)
def test_names_of_cameras_and_programs_are_no_captions(tmp_path: Path, name: str) -> None:
    assert caption_for(tmp_path / f"{name}.jpg") == ""
    assert caption_for(tmp_path / f"00001-0-{name}.jpg") == "", "nor are they in the names of results"


@pytest.mark.parametrize("name", ["1girl", "3d render", "img of a cat 2", "photo of 2 cats", "portrait 3", "35mm", "2B", "star", "p"])
def test_names_with_a_word_are_captions(tmp_path: Path, name: str) -> None:
    assert caption_for(tmp_path / f"{name}.jpg") == name


@pytest.mark.parametrize("ending", [".txt", ".TXT", ".Txt", ".caption", ".CAPTION", ".png.txt"])
def test_texts_beside_the_picture_whatever_their_ending(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"cat{ending}").write_text("a red cat")
    assert caption_for(tmp_path / "cat.png") == "a red cat"


def test_the_text_comes_before_the_data_and_the_table(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "cat.png", "text": "table"}\nnot json\n')
    assert caption_for(tmp_path / "cat.png") == "table"
    (tmp_path / "cat.json").write_text('{"rating": 1}')
    assert caption_for(tmp_path / "cat.png") == "table", "nothing in it is a caption"
    (tmp_path / "cat.json").write_text('{"caption": "data"}')
    assert caption_for(tmp_path / "cat.png") == "data"
    (tmp_path / "cat.caption").write_text("caption")
    assert caption_for(tmp_path / "cat.png") == "caption"
    (tmp_path / "cat.txt").write_text("text")
    assert caption_for(tmp_path / "cat.png") == "text"


@given(st.binary(max_size=80))
def test_any_bytes_in_data_and_tables_give_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "tables"
    folder.mkdir(exist_ok=True)
    for name in ("any.json", "any.yaml", "metadata.jsonl", "metadata.csv", "data.json"):
        (folder / name).write_bytes(data)
    caption = caption_for(folder / "any.png")
    assert len(caption.splitlines()) <= 1


def test_each_of_many_tables_is_parsed_once(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"table {number:02}.csv").write_text(f"file_name,text\n{number}.png,cat {number}\n")
    captions._parsed.cache_clear()
    found = [captions.written(tmp_path / f"{number}.png") for number in range(30)]
    assert sum(caption is not None for caption in found) == 16
    assert captions._parsed.cache_info().misses == 16
