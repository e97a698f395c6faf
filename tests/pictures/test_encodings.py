"""Captions in the encodings that editors of many countries have written, and what is refused because it cannot be told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.captions import decoded
from textual_inversion.pictures.encodings import decode
from textual_inversion.pictures.folder import caption_for
from textual_inversion.training.data.training_set import DatasetOptions, scan_training_set
from textual_inversion.training.data.views import Sizing

CAPTIONS = {
    "gbk": [
        "白色背景",
        "一个女孩站在花园里",
        "红色的猫，绿色的眼睛",
        "动漫风格，长发，微笑",
        "1girl, 白色头发, 蓝色眼睛",
        "照片",
        "一只狗",
        "水墨画，山和河流",
        "赛博朋克城市夜景",
        "穿着黑色连衣裙的女人",
        "AI绘画, 高清",
        "古风",
    ],
    "big5": [
        "白色背景",
        "一個女孩站在花園裡",
        "紅色的貓，綠色的眼睛",
        "動漫風格，長髮，微笑",
        "照片",
        "山和河流的水墨畫",
        "穿著黑色洋裝的女人",
        "夜景",
        "1girl, 白色頭髮",
    ],
    "cp932": [
        "白い背景",
        "女の子が花園に立っている",
        "赤い猫、緑の目",
        "アニメ",
        "長い髪, 笑顔",
        "風景",
        "黒いドレスを着た女性",
        "1girl, 金髪",
        "猫耳",
        "青空と海",
    ],
    "euc_jp": [
        "白い背景",
        "女の子が花園に立っている",
        "赤い猫、緑の目",
        "アニメ",
        "青空と海",
    ],
    "cp949": [
        "흰색 배경",
        "정원에 서 있는 소녀",
        "빨간 고양이, 초록색 눈",
        "애니메이션",
        "검은 드레스를 입은 여자",
        "사진",
    ],
    "cp1251": [
        "белый фон",
        "девушка стоит в саду",
        "Красный кот, зелёные глаза",
        "аниме",
        "чёрное платье",
        "Портрет женщины, масло",
        "1girl, белые волосы",
        "фото",
        "біле тло",
        "кот",
    ],
    "koi8_r": [
        "белый фон",
        "девушка стоит в саду",
        "Красный кот, зелёные глаза",
        "аниме",
        "чёрное платье",
        "Портрет женщины, масло",
        "1girl, белые волосы",
        "фото",
        "кот",
    ],
    "cp1252": [
        "the star’s place, café",
        "a café, blue",
        "Mädchen in einem grünen Kleid",
        "Äpfel und Birnen",
        "une fille à côté d’un arbre",
        "20°C outside",
        "niño pequeño, España",
        "“quoted” text – with dash",
        "höher",
        "Größe",
        "naïve",
        "été",
        "crème brûlée",
        "São Paulo",
        "ação",
        "Smörgåsbord",
        "garçon",
        "façade, noël",
        "Zürich",
        "ñandú",
        "l’été à Évian",
        "ein weißer Hund",
        "Müßiggang",
        "ÜBER",
        "© 2020 me",
        "½ face",
        "Ærø",
        "skål",
    ],
}
UNSURE = {"1girl, 金髪"}  # two letters that could be others


@pytest.mark.parametrize(("encoding", "caption"), [(encoding, caption) for encoding, each in CAPTIONS.items() for caption in each])
def test_captions_of_many_countries(encoding: str, caption: str) -> None:
    found = decode(caption.encode(encoding))
    assert found == (None if caption in UNSURE else caption)


@pytest.mark.parametrize("encoding", [*CAPTIONS, "utf-8", "utf-16", "utf-8-sig"])
def test_a_longer_text(encoding: str) -> None:
    for source, captions in CAPTIONS.items():
        if encoding in (source, "utf-8", "utf-16", "utf-8-sig"):
            text = "\n".join(captions)
            assert decode(text.encode(encoding)) == text


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",), exclude_characters="\0\ufeff"), max_size=60))
def test_utf8_is_never_taken_for_another(text: str) -> None:
    assert decode(text.encode()) == text


def test_files_of_one_folder_tell_more_than_one(tmp_path: Path) -> None:
    for place, caption in enumerate(CAPTIONS["cp932"]):
        (tmp_path / f"{place}.txt").write_bytes(caption.encode("cp932"))
    (tmp_path / "modern.txt").write_text("白い背景", encoding="utf-8")
    for place, caption in enumerate(CAPTIONS["cp932"]):
        assert caption_for(tmp_path / f"{place}.png") == " ".join(caption.split())


@pytest.mark.parametrize("data", [b"\x81 undefined in Windows-1252", b"\xff\x00\x01", bytes(range(128, 256)), "金髪".encode("cp932")])
def test_what_cannot_be_told_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DatasetError, match=r"x\.txt is in an encoding that cannot be told; save it as UTF-8"):
        decoded(data, tmp_path / "x.txt")


def test_such_a_picture_is_left_out_with_the_reason(tmp_path: Path) -> None:
    for name, data in (("a", b"a cat"), ("b", "金髪".encode("cp932")), ("c", "белый фон".encode("koi8_r"))):
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_bytes(data)
    listed = scan_training_set(tmp_path, DatasetOptions(Sizing(64, 64)))
    assert [picture.caption for picture in listed.pictures] == ["a cat", "белый фон"]
    assert listed.skipped[0][0] == "b.png"
    assert "b.txt is in an encoding" in listed.skipped[0][1]
