"""Plans before anything is written, and runs that write a plan."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from textual_inversion.errors import ConfigError
from textual_inversion.pictures.folder import mask_file
from textual_inversion.preprocess.run import PreprocessConfig, plan, preprocess


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    fine = np.random.default_rng(seed).integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray((np.asarray(Image.fromarray(coarse).resize(size)) // 2 + fine).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "in"
    source.mkdir()
    noise((300, 100), 1).save(source / "long.png")
    noise((160, 120), 2).save(source / "normal.jpg", quality=92)
    (source / "normal.txt").write_text("a normal picture")
    noise((160, 120), 2).resize((140, 105)).save(source / "same.webp", quality=90)
    Image.new("RGB", (40, 40), "red").save(source / "small.png")
    (source / "text.png").write_text("no picture")
    return source


def config(source: Path, **values: Any) -> PreprocessConfig:
    return PreprocessConfig(**({"source": str(source), "destination": str(source.parent / "out"), "width": 64, "height": 64} | values))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def test_a_plan_is_complete_and_writes_nothing(folder: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    items = plan(config(folder), lambda *args: calls.append(args))
    assert [item.source.name for item in items] == ["long.png", "normal.jpg", "same.webp", "small.png", "text.png"]
    assert calls == [(place, 5, items[place - 1].source.name) for place in range(1, 6)]
    long, normal, same, small, text = items
    assert (long.size, long.views[0].box, long.views[0].size) == ((300, 100), (100, 0, 200, 100), (64, 64))
    assert [problem.kind for problem in long.problems] == ["shape"]
    assert (normal.problems, normal.views[0].caption) == ((), "a normal picture")
    assert "It shows the same as normal.jpg" in same.problems[0].text
    assert [problem.kind for problem in small.problems] == ["blurred", "small"]
    assert (text.views, text.size) == ((), (0, 0))
    assert "text.png cannot be read: its contents are not" in text.reason
    assert not (folder.parent / "out").exists()
    assert len(names(folder)) == 6


def test_choices_and_edited_captions_are_honoured(folder: Path) -> None:
    items = plan(config(folder, flips=("horizontal",)))
    items[1] = items[1].with_caption("  better\nwords ")
    items[2] = items[2].choose(False)
    report = preprocess(config(folder, flips=("horizontal",)), planned=items)
    assert report.left_out == ["same.webp"]
    assert [name for name, _ in report.skipped] == ["text.png"]
    out = folder.parent / "out"
    assert names(out) == [
        *("00000-0-long.png", "00000-1-long.png", "00001-0-normal.png", "00001-0-normal.txt"),
        *("00001-1-normal.png", "00001-1-normal.txt", "00003-0-small.png", "00003-1-small.png"),
    ]
    assert (out / "00001-1-normal.txt").read_text() == "better words"


def test_parts_are_chosen_and_captioned_one_by_one(folder: Path) -> None:
    settings = config(folder, split=True)
    items = plan(settings)
    assert [view.part for view in items[0].views] == [0, 1, 2, 3]
    items[0] = items[0].choose(False, 1).with_caption("the end", 3)
    preprocess(settings, planned=items[:1])
    assert names(folder.parent / "out") == ["00000-0-long.png", "00000-12-long.png", "00000-12-long.txt", "00000-8-long.png"]


def test_results_that_are_there_are_marked_done_and_an_edited_caption_replaces_its_file(folder: Path) -> None:
    first = preprocess(config(folder))
    items = plan(config(folder))
    assert [item.done for item in items] == [True, True, True, True, False]
    assert not any(item.done for item in plan(config(folder, split=True, focal_crop=True))[:1])
    items[1] = items[1].with_caption("edited")
    report = preprocess(config(folder), planned=items)
    assert (report.written, report.kept) == ([], first.written)
    assert [path.read_text() for path in report.captions] == ["edited"]
    assert preprocess(config(folder)).captions == []


def test_a_plan_of_other_settings_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="looked at with other settings"):
        preprocess(config(folder, width=128), planned=plan(config(folder)))


def test_the_plan_and_the_run_without_it_agree(folder: Path) -> None:
    for number, values in enumerate(
        ({}, {"focal_crop": True, "face_weight": 0.0}, {"auto_size": True, "error_threshold": 0.5}, {"split": True})
    ):
        one, other = (config(folder, destination=str(folder.parent / f"{number}{way}"), **values) for way in "ab")
        preprocess(one)
        preprocess(other, planned=plan(other), workers=1)
        assert names(one.destination_path) == names(other.destination_path) != []
        for name in names(one.destination_path):
            if name == "focal-point":
                assert names(one.destination_path / name) == names(other.destination_path / name) != []
                continue
            assert (one.destination_path / name).read_bytes() == (other.destination_path / name).read_bytes()


def test_stopping_a_plan(folder: Path) -> None:
    answers = iter([False, False, True])
    assert len(plan(config(folder), should_stop=lambda: next(answers))) == 2


def test_masks_come_along_cropped_alike(folder: Path) -> None:
    mask = Image.new("L", (160, 120))
    mask.paste(255, (20, 0, 80, 120))
    mask.save(folder / "normal-mask.png")
    report = preprocess(config(folder, flips=("horizontal",)))
    target = next(path for path in report.written if path.name == "00001-1-normal.png")
    with Image.open(mask_file(target)) as cropped:
        assert (cropped.mode, cropped.size) == ("L", (64, 64))
        assert (cropped.getpixel((5, 30)), cropped.getpixel((58, 30))) == (0, 255)  # mirrored
    again = preprocess(config(folder, flips=("horizontal",)))
    assert (again.written, len(again.kept)) == ([], 8)


def test_transparency_stays_as_weight_or_is_laid_on_a_colour(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    image = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 64))
    image.save(folder / "a.png")
    (path,) = preprocess(config(folder, transparency="weight", flips=())).written
    with Image.open(path) as result:
        assert (result.mode, result.getpixel((5, 5)), result.getpixel((60, 5))) == ("RGBA", (0, 0, 255, 255), (0, 255, 0, 0))
    (path,) = preprocess(config(folder, background="#ff8000", destination=str(folder / "on colour"))).written
    with Image.open(path) as result:
        assert (result.mode, result.getpixel((60, 5))) == ("RGB", (255, 128, 0))


def test_exif_is_a_switch(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in folder.iterdir():
        path.unlink()
    noise((200, 100)).save(folder / "a.jpg", exif=exif)
    sizes = [plan(config(folder, exif=on, resize="fit", width=512, height=512))[0].size for on in (True, False)]
    assert sizes == [(100, 200), (200, 100)]


def test_captions_as_file_names_are_found_again(folder: Path) -> None:
    settings = config(folder, caption_place="name")
    report = preprocess(settings)
    assert names(folder.parent / "out")[1] == "00001-0-a normal picture.png"
    noise((64, 64), 9).save(folder / "another.png")
    again = preprocess(settings)
    assert sorted(again.kept) == sorted(report.written)
    assert [path.name for path in again.written] == ["00006-0-another.png"]
    items = plan(settings)
    assert all(item.done for item in items[:-1])
    preprocess(settings, planned=[item.with_caption("what? a/b") for item in items if item.source.name == "normal.jpg"])
    assert "00001-0-what a b.png" in names(folder.parent / "out")


def test_captions_only_write_beside_the_sources(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    settings = PreprocessConfig(str(folder), captions_only=True, caption_prefix="photo:", drop_words="normal")
    report = preprocess(settings)
    assert [path.name for path in report.captions] == ["long.txt", "normal.txt", "same.txt", "small.txt"]
    assert (folder / "normal.txt").read_text() == "photo: picture"
    assert (folder / "long.txt").read_text() == "photo: long"
    assert [name for name, _ in report.skipped] == ["text.png"]
    assert {name: data for name, data in before.items() if not name.endswith(".txt")} == {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".txt"
    }
    assert preprocess(settings).captions == []
    items = [item.with_caption("by hand") for item in plan(settings)[:1]]
    preprocess(settings, planned=items)
    assert (folder / "long.txt").read_text() == "by hand"


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({}, "captioners"),
        ({"caption_prefix": "x", "destination": "elsewhere"}, "destination"),
        ({"caption_prefix": "x", "caption_place": "name"}, "caption_place"),
    ],
)
def test_captions_only_needs_something_to_do(folder: Path, values: dict[str, str], setting: str) -> None:
    with pytest.raises(ConfigError) as error:
        PreprocessConfig(str(folder), captions_only=True, **values)  # type: ignore[arg-type]
    assert error.value.setting == setting


def test_captioners_see_the_result_and_are_asked_one_at_a_time(folder: Path) -> None:
    busy = threading.Lock()
    seen: list[tuple[int, int]] = []

    def look(image: Image.Image) -> str:
        assert busy.acquire(blocking=False)
        seen.append(image.size)
        busy.release()
        return f"a {image.mode} picture"

    settings = config(folder, captioners=("look", "twice"), existing_captions="append")
    report = preprocess(settings, captioners={"look": look, "twice": lambda image: "thing", "unused": look})
    assert set(seen) == {(64, 64)}
    assert len(seen) == 4
    texts = [path.read_text() for path in report.captions]
    assert texts == ["a RGB picture, thing", "a RGB picture, thing, a normal picture", "a RGB picture, thing", "a RGB picture, thing"]
    with pytest.raises(ConfigError, match=r"There is no captioner 'look' \(none is loaded\)"):
        preprocess(settings)


def test_results_without_captions_get_them_later(folder: Path) -> None:
    preprocess(config(folder))
    report = preprocess(config(folder, captioners=("it",)), captioners={"it": lambda image: "later"})
    assert report.written == []
    assert {path.name: path.read_text() for path in report.captions} == dict.fromkeys(
        ("00000-0-long.txt", "00002-0-same.txt", "00003-0-small.txt"), "later"
    )


def test_an_existing_caption_is_copied_byte_by_byte_when_asked(folder: Path) -> None:
    (folder / "normal.txt").write_bytes(b"\xef\xbb\xbfline one\r\nline two")
    preprocess(config(folder, existing_captions="copy", caption_prefix="x"))
    assert (folder.parent / "out" / "00001-0-normal.txt").read_bytes() == b"\xef\xbb\xbfline one\r\nline two"


def test_a_source_that_was_exchanged_is_noticed(folder: Path) -> None:
    preprocess(config(folder))
    noise((160, 120), 7).save(folder / "normal.jpg", quality=50)
    report = preprocess(config(folder))
    assert "is in the destination already from another normal.jpg" in dict(report.skipped)["normal.jpg"]


def test_results_say_what_they_were_made_from(folder: Path) -> None:
    path = preprocess(config(folder)).written[0]
    with Image.open(path) as image:
        note = json.loads(image.info["preprocessed"])
    status, digest = (folder / "long.png").stat(), hashlib.sha256((folder / "long.png").read_bytes()).hexdigest()
    files = {"bytes": status.st_size, "modified": status.st_mtime_ns, "sha256": digest, "mask": ""}
    assert note == {"source": "long.png", "settings": config(folder).fingerprint, **files}


def test_a_source_of_the_same_length_and_another_mask_are_noticed(folder: Path) -> None:
    source = folder / "normal.jpg"
    preprocess(config(folder))
    data = bytearray(source.read_bytes())
    data[-20] ^= 1  # in the pixels
    source.write_bytes(data)
    os.utime(source, ns=(0, 12345))
    assert "from another normal.jpg" in dict(preprocess(config(folder)).skipped)["normal.jpg"]
    data[-20] ^= 1
    source.write_bytes(data)
    again = preprocess(config(folder))
    assert "normal.jpg" not in dict(again.skipped), "the same contents, saved anew"
    assert again.written == []
    Image.new("L", (160, 120), 255).save(folder / "normal_mask.png")
    assert "from another normal_mask.png" in dict(preprocess(config(folder)).skipped)["normal.jpg"]


def changed(path: Path, text: str, seconds: int) -> None:
    """Somebody changes a caption, so many seconds from now."""
    path.write_text(text, encoding="utf-8")
    now = path.stat().st_mtime + seconds
    os.utime(path, (now, now))


@pytest.mark.parametrize("is_planned", [True, False])
def test_a_caption_changed_in_the_source_is_told(folder: Path, is_planned: bool) -> None:
    preprocess(config(folder))
    (result,) = (path for path in (folder.parent / "out").glob("*.txt") if path.read_text() == "a normal picture")

    def again() -> tuple[list[str], list[str]]:
        items = plan(config(folder))
        (item,) = (item for item in items if item.source.name == "normal.jpg")
        report = preprocess(config(folder), planned=items if is_planned else None)
        assert (report.written, report.captions) == ([], [])
        return report.notes, [problem.text for problem in item.problems if problem.kind == "caption"]

    changed(folder / "normal.txt", "a normal picture", 5)  # copied or unpacked anew
    assert again() == ([], [])
    changed(folder / "normal.txt", "corrected", 5)
    told = f"normal.txt was changed after {result.name} was written, which stays as it is; delete {result.name} to take the new caption."
    assert again() == ([told], [told])
    assert result.read_text() == "a normal picture"
    changed(result, "by hand", 10)
    assert again() == ([], [])
    result.unlink()
    preprocess(config(folder))
    assert result.read_text() == "corrected"
