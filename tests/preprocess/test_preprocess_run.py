from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from textual_inversion.errors import ConfigError, DatasetError
from textual_inversion.pictures.folder import caption_for
from textual_inversion.preprocess.run import PreprocessConfig, preprocess


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    half = Image.new("RGB", (120, 80), "red")
    half.paste("blue", (60, 0, 120, 80))
    half.save(folder / "2 half.png")
    (folder / "2 half.txt").write_bytes("\ufeffred and blue é".encode())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 200), "lime").save(folder / "10.jpg", exif=exif)
    return folder


def config(folder: Path, **values: Any) -> PreprocessConfig:
    return PreprocessConfig(**({"source": str(folder), "destination": str(folder.parent / "out"), "width": 64, "height": 64} | values))


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()}


def test_pictures_and_captions_are_written_and_sources_stay(source: Path) -> None:
    before = snapshot(source)
    calls: list[tuple[int, int, str]] = []
    report = preprocess(config(source), lambda *args: calls.append(args))
    assert [path.name for path in report.written] == ["00000-0-2 half.png", "00001-0-10.png"]
    assert report.skipped == []
    assert report.kept == []
    assert not report.stopped
    assert calls == [(1, 2, "2 half.png"), (2, 2, "10.jpg")]
    with Image.open(report.written[0]) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        assert image.size == (64, 64)
        assert "exif" not in image.info
        assert image.getpixel((4, 30)) == (255, 0, 0)
        assert image.getpixel((60, 30)) == (0, 0, 255)
    assert caption_for(report.written[0]) == "red and blue é"
    assert sorted(os.listdir(source.parent / "out")) == ["00000-0-2 half.png", "00000-0-2 half.txt", "00001-0-10.png"]
    assert snapshot(source) == before


def test_mirrored_copies_have_captions_too(source: Path) -> None:
    report = preprocess(config(source, flips=("horizontal",)))
    assert [path.name[:7] for path in report.written] == ["00000-0", "00000-1", "00001-0", "00001-1"]
    with Image.open(report.written[1]) as image:
        assert image.getpixel((4, 30)) == (0, 0, 255)
    assert caption_for(report.written[1]) == "red and blue é"


def test_without_crop_the_whole_picture_is_kept_upright(source: Path) -> None:
    report = preprocess(config(source, resize="fit", width=128))
    sizes = []
    for path in report.written:
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes == [(96, 64), (128, 64)]  # the second lies on its side until EXIF turns it


def test_a_second_run_does_only_what_is_missing(source: Path) -> None:
    first = preprocess(config(source))
    before = snapshot(source.parent / "out")
    again = preprocess(config(source))
    assert again.written == []
    assert again.kept == first.written
    assert snapshot(source.parent / "out") == before
    Image.new("RGB", (64, 64)).save(source / "1 new.png")
    flipped = preprocess(config(source, flips=("horizontal",)))
    assert [path.name for path in flipped.written] == ["00003-0-1 new.png", "00003-1-1 new.png", "00000-1-2 half.png", "00001-1-10.png"]


def test_an_edited_caption_is_not_replaced_and_a_missing_one_comes(source: Path) -> None:
    written = preprocess(config(source)).written
    written[0].with_suffix(".txt").write_text("better")
    (source / "10.txt").write_text("green")
    preprocess(config(source))
    assert [caption_for(path) for path in written] == ["better", "green"]


def test_results_of_other_settings_are_neither_replaced_nor_called_done(source: Path) -> None:
    preprocess(config(source))
    before = snapshot(source.parent / "out")
    report = preprocess(config(source, width=128))
    assert report.written == report.kept == []
    assert "00000-0-2 half.png is in the destination already with 64x64 pixels" in report.skipped[0][1]
    assert snapshot(source.parent / "out") == before
    (source.parent / "out" / "00001-0-10.png").write_text("no")
    assert "is not a PNG picture" in preprocess(config(source)).skipped[0][1]


def test_unreadable_pictures_are_named_and_the_rest_goes_on(source: Path) -> None:
    (source / "1.png").write_text("text")
    (source / "3.webp").write_bytes(b"")
    whole = (source / "10.jpg").read_bytes()
    (source / "4.jpg").write_bytes(whole[: len(whole) // 2])
    report = preprocess(config(source))
    assert [name for name, _ in report.skipped] == ["1.png", "3.webp", "4.jpg"]
    assert all(reason.startswith(name) for name, reason in report.skipped)
    assert [path.name for path in report.written] == ["00001-0-2 half.png", "00004-0-10.png"]
    Image.new("RGB", (64, 64)).save(source / "1.png")
    assert [path.name for path in preprocess(config(source)).written] == ["00000-0-1.png"]


def test_a_subfolder_of_the_source_will_do(source: Path) -> None:
    assert len(preprocess(config(source, destination=str(source / "out"))).written) == 2
    assert preprocess(config(source, destination=str(source / "out"))).written == []


def test_stopping_keeps_what_is_done(source: Path) -> None:
    answers = iter([False, True])
    report = preprocess(config(source), should_stop=lambda: next(answers))
    assert report.stopped
    assert len(report.written) == 1
    assert len(preprocess(config(source)).written) == 1


def test_too_long_a_name_is_skipped(source: Path) -> None:
    Image.new("RGB", (64, 64)).save(source / ("y" * 250 + ".png"))
    report = preprocess(config(source))
    assert len(report.written) == 2
    assert "too long a name" in report.skipped[0][1]


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_write_that_fails_half_way_leaves_nothing(source: Path) -> None:
    import resource

    Image.effect_noise((64, 64), 80).convert("RGB").save(source / "3 noise.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DatasetError, match="could not be written after 1 picture: File too large; choose another folder") as caught:
            preprocess(config(source))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    left = set(os.listdir(source.parent / "out"))
    assert left <= {"00000-0-2 half.png", "00000-0-2 half.txt", "00002-0-10.png"}  # the last one may have been under way
    assert len(preprocess(config(source)).written) == 4 - len(left)


@pytest.mark.parametrize(
    ("number", "cause"), [(errno.ENOSPC, "the disk is full; free some space"), (errno.EACCES, "permissions"), (errno.EROFS, "permissions")]
)
def test_disk_full_and_no_permission_are_one_sentence(source: Path, monkeypatch: pytest.MonkeyPatch, number: int, cause: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DatasetError, match=cause):
        preprocess(config(source))
    assert os.listdir(source.parent / "out") == []


def test_a_destination_that_cannot_be_made(source: Path) -> None:
    (source.parent / "file").write_text("x")
    for destination in (source.parent / "file", source.parent / "file" / "deeper"):
        with pytest.raises(DatasetError, match="a file, not a folder") as error:
            preprocess(config(source, destination=str(destination)))
        assert (error.value.path, error.value.setting) == (destination, "destination")


def test_a_source_without_pictures_makes_no_destination(source: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    for name in ("none", "gone"):
        with pytest.raises(DatasetError) as error:
            preprocess(config(source, source=str(tmp_path / name)))
        assert error.value.path == tmp_path / name
    assert not (source.parent / "out").exists()


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({"width": 100}, "width"),
        ({"height": 8}, "height"),
        ({"width": 512.0}, "width"),
        ({"width": True}, "width"),
        ({"flips": "both"}, "flips"),
        ({"flips": ("both", "both")}, "flips"),
        ({"resize": None}, "resize"),
        ({"split_overlap": 0.95}, "split_overlap"),
        ({"face_weight": float("nan")}, "face_weight"),
        ({"min_side": 768, "max_side": 384}, "min_side"),
        ({"min_area": 5000, "max_area": 4096}, "min_area"),
        ({"background": "bluish"}, "background"),
        ({"exif": 1}, "exif"),
        ({"captioners": ["blip"]}, "captioners"),
        ({"caption_prefix": 3}, "caption_prefix"),
        ({"source": " "}, "source"),
        ({"destination": ""}, "destination"),
    ],
)
def test_settings_out_of_range(source: Path, values: dict[str, object], setting: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(source, **values)
    assert error.value.setting == setting


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 100}, "Width is 100; it must be a multiple of 8"),
        ({"flips": "both"}, "Flips is 'both'; it must be a tuple of horizontal, vertical, both, each once"),
        ({"resize": None}, "Resize is None; it must be one of crop, fit, keep"),
        ({"split_overlap": 0.95}, "Split overlap is 0.95; it must be from 0 to 0.9"),
        ({"min_side": 768, "max_side": 384}, "Min side 768 is above max side 384; exchange them"),
        ({"exif": 1}, "Exif is 1; it must be true or false"),
    ],
)
def test_settings_say_what_they_must_be(source: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(source, **values)


def test_source_and_destination_must_differ(source: Path) -> None:
    (source.parent / "link").symlink_to(source)
    for same in (str(source), f"{source}/", f"{source}/../source", str(source.parent / "link")):
        with pytest.raises(ConfigError, match="Source and destination are both") as error:
            config(source, destination=same)
        assert error.value.setting == "destination"
    with pytest.raises(ConfigError, match="both"):
        PreprocessConfig("not there", "./not there")
