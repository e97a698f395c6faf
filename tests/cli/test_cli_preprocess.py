"""The command `preprocess`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from textual_inversion.cli import build_parser, main
from textual_inversion.settings.preprocessing import PreprocessConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (90, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"{number}.jpg")
    (source / "0.txt").write_text("a red cat")
    (source / "no.png").write_text("text")
    return source


SMALL = ["--width", "64", "--height", "64"]


def test_every_setting_is_an_option_with_its_default_and_its_help(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = build_parser().parse_args(["preprocess", "a", "b"])
    for field in fields(PreprocessConfig):
        value = getattr(options, field.name)
        if field.name not in ("source", "destination"):
            assert (tuple(value) if isinstance(value, list) else value or field.default) == field.default, field.name
    with pytest.raises(SystemExit):
        main(["preprocess", "--help"])
    shown = capsys.readouterr().out
    assert "`" not in shown
    assert "default: Salesforce" in shown


def test_a_dry_run_prints_a_table_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = folder.parent / "ready"
    assert main(["preprocess", str(folder), str(target), *SMALL, "--flip", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["picture", "pixels", "cut", "out", "at", "result", "caption", "and", "remarks"]
    assert lines[1].split()[:5] == ["0.jpg", "200x90", "55,0", "90x90", "64x64"]
    assert "“a red cat” 55% of it is cut away" in lines[1]
    assert "no.png cannot be read" in lines[3]
    assert lines[4] == "3 pictures, 4 results, 1 that cannot be used; nothing was written"
    assert not target.exists()


def test_a_dry_run_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preprocess", str(folder), str(folder.parent / "x"), *SMALL, "--split", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["results"] == 6
    first = told["planned"][0]
    assert (first["file"], first["size"], len(first["views"])) == ("0.jpg", [200, 90], 3)
    assert first["views"][0] == {"box": [0, 0, 90, 90], "size": [64, 64], "caption": "a red cat"}
    assert told["planned"][2]["reason"].startswith("no.png cannot be read")


@pytest.mark.parametrize(
    ("flags", "suffixes"),
    [([], ["0"]), (["--flip"], ["0", "1"]), (["--flip", "vertical", "both"], ["0", "2", "3"])],
)
def test_copies(folder: Path, flags: list[str], suffixes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    target = folder.parent / "ready"
    assert main(["preprocess", str(folder), str(target), *SMALL, *flags]) == 0
    assert [path.name.split("-")[1] for path in sorted(target.glob("00000*.png"))] == suffixes
    printed = capsys.readouterr()
    assert "no.png" in printed.err
    assert printed.out.strip().endswith(f"{2 * len(suffixes)} written, 0 already there, 1 skipped")


def test_one_picture_is_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("1.jpg", "no.png"):
        (folder / name).unlink()
    assert main(["preprocess", str(folder), str(folder.parent / "ready"), *SMALL, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 picture, 1 result, 0 that cannot be used; nothing was written"
    assert main(["preprocess", str(folder), "--captions-only", "--caption-prefix", "photo of"]) == 0
    assert "1 caption written" in capsys.readouterr().out


def test_captions_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preprocess", str(folder), "--captions-only", "--caption-prefix", "photo of", "--drop-words", "cat"]) == 0
    assert (folder / "0.txt").read_text() == "photo of a red"
    assert "2 captions written, 1 skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Destination is empty"),
        (["out", "--split-overlap", "1"], "Split overlap is 1.0"),
        (["out", "--caption", "blip", "--blip-model", "nobody/nothing"], "allow its download"),
        (["out", "--caption", "somebody"], "There is no captioner 'somebody'"),
    ],
)
def test_bad_settings_are_one_sentence(folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preprocess", str(folder), *arguments]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1
