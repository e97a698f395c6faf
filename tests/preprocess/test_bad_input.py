"""What people's folders hold besides good pictures: each is named with its reason, the rest goes on, nothing half-written stays."""

from __future__ import annotations

import os
import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from textual_inversion.errors import DatasetError
from textual_inversion.preprocess.run import PreprocessConfig, plan, preprocess


def noise(mode: str = "RGB", size: tuple[int, int] = (90, 70)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def truncated(path: Path) -> None:
    noise().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_200_megapixels(path: Path) -> None:
    """A PNG whose header promises 20,000 x 10,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))


def palette(path: Path) -> None:
    noise("P").save(path, transparency=3)


def animated(path: Path) -> None:
    noise().save(path, save_all=True, append_images=[noise("L").convert("RGB")])


GOOD: dict[str, Callable[[Path], object]] = {
    "cmyk.jpg": lambda path: noise("CMYK").save(path),
    "deep.png": lambda path: Image.fromarray(np.arange(90 * 70, dtype=np.uint16).reshape(70, 90) * 10).save(path),
    "palette.png": palette,
    "moving.gif": animated,
    "moving.webp": animated,
    "one bit.png": lambda path: noise("1").save(path),
    "猫 и кошка é🐈.png": lambda path: noise().save(path),
    "dots.and. spaces .jpg": lambda path: noise().save(path),
    "-dash.png": lambda path: noise().save(path),
    "speck.png": lambda path: Image.new("RGB", (1, 1)).save(path),
    "line.png": lambda path: Image.new("RGB", (500, 1)).save(path),
}
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut.jpg": (truncated, "its data are damaged or cut short"),
    "cut.png": (truncated, "its data are damaged or cut short"),
    "empty.jpg": (lambda path: path.write_bytes(b""), r"it is empty \(0 bytes\)"),
    "huge.png": (of_200_megapixels, "million pixels"),
    "page.png": (lambda path: path.write_text("<html>"), "its contents are not"),
    "broken.txt.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "cannot be read"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "in"
    source.mkdir()
    for name, make in GOOD.items():
        make(source / name)
    for name, (make, _) in BAD.items():
        make(source / name)
    return source


@pytest.mark.parametrize("steps", [{}, {"focal_crop": True, "focal_debug": True}, {"split": True, "flips": ("both",)}, {"resize": "fit"}])
def test_each_is_named_and_the_rest_goes_on(folder: Path, steps: dict[str, object]) -> None:
    config = PreprocessConfig(str(folder), str(folder / "inside"), width=64, height=64, **steps)  # type: ignore[arg-type]
    reasons = {item.source.name: item.reason for item in plan(config) if item.reason}
    report = preprocess(config)
    assert dict(report.skipped) == reasons
    assert set(reasons) == set(BAD)
    for name, (_, words) in BAD.items():
        assert reasons[name].startswith(f"{name} cannot be read: ")
        assert re.search(words, reasons[name]), reasons[name]
        assert "\n" not in reasons[name]
    results = {path.name.split("-", 2)[2] for path in report.written}
    assert results == {Path(name).stem + ".png" for name in GOOD}
    for path in report.written:
        with Image.open(path) as image:
            image.load()
            assert image.mode == "RGB"
    assert [name for name in os.listdir(folder / "inside") if name.startswith(".")] == []
    assert preprocess(config).written == []


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(folder: Path) -> None:
    out = folder.parent / "out"
    out.mkdir(mode=0o500)
    with pytest.raises(DatasetError) as error:
        preprocess(PreprocessConfig(str(folder), str(out), width=64, height=64))
    assert (error.value.path, error.value.setting) == (out, "destination")


def test_ten_thousand_pictures_hold_no_pixels(tmp_path: Path) -> None:
    """Here 100 of them: what is kept of each is a kilobyte or two, not its 196 of pixels."""
    import tracemalloc

    source = tmp_path / "in"
    source.mkdir()
    noise(size=(256, 256)).save(source / "0.jpg")
    for number in range(1, 100):
        os.link(source / "0.jpg", source / f"{number}.jpg")
    config = PreprocessConfig(str(source), str(tmp_path / "out"), width=64, height=128, focal_crop=True, face_weight=0.0)
    plan(PreprocessConfig(str(source), str(tmp_path / "out")), should_stop=lambda: True)
    tracemalloc.start()
    items = plan(config)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(items) == 100
    assert size / 100 < 4000
    assert sum(bool(item.problems) for item in items) == 99  # the same, all of them
