"""Pictures that are damaged, lie, or carry nothing: one sentence each, in little memory."""

from __future__ import annotations

import base64
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import EmbeddingError, NoEmbeddingError, UnknownLayoutError
from textual_inversion.formats import describe, load
from textual_inversion.formats.containers.file_bytes import FileBytes
from textual_inversion.formats.containers.picture_data import hide
from textual_inversion.formats.containers.picture_png import first_row, read_png
from textual_inversion.formats.layouts.a1111_picture import draw_card

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEYWORD = b"sd-ti-embedding"
GOOD = b'{"string_to_param": {"*": {"TORCHTENSOR": [[1.0, 2.0]]}}}'


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    *chunks: bytes, width: int = 2, height: int = 2, depth: int = 8, colour: int = 2, interlace: int = 0, pixels: bytes | None = None
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    rows = zlib.compress(b"\0" * 7 * 2 if pixels is None else pixels)
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def in_parts(data: bytes) -> bytes:
    """The same PNG, its pixels in one part for every two bytes."""
    begin = data.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", data[begin - 8 : begin - 4])
    parts = [chunk(b"IDAT", data[at : min(at + 2, begin + length)]) for at in range(begin, begin + length, 2)]
    return data[: begin - 8] + b"".join(parts) + data[begin + length + 4 :]


def text(data: bytes) -> bytes:
    return chunk(b"tEXt", KEYWORD + b"\0" + base64.b64encode(data))


def picture(data: numpy.ndarray, ending: str = "PNG", **how: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(data).save(buffer, ending, **how)
    return buffer.getvalue()


def noise(*shape: int) -> numpy.ndarray:
    return numpy.random.default_rng(0).integers(0, 256, shape, numpy.uint8)


def carrier(data: bytes = GOOD) -> numpy.ndarray:
    return hide(noise(32, 32, 3), data, numpy.ones(1))


def check_refused(path: Path, data: bytes, kind: type[EmbeddingError] = EmbeddingError) -> str:
    """The reason that `load` gives, which is one sentence."""
    path.write_bytes(data)
    with pytest.raises(kind) as error:
        load(path)
    assert error.value.path == path
    assert "\n" not in error.value.reason
    assert error.value.reason.endswith(".")
    return error.value.reason


def check_survives(path: Path, data: bytes) -> None:
    """Any other exception than the package's fails the test."""
    path.write_bytes(data)
    try:
        outcome: Embedding | EmbeddingError = load(path)
    except EmbeddingError as error:
        outcome = error
    assert isinstance(outcome, Embedding) or outcome.path == path


def _with_black_columns(*columns: int) -> numpy.ndarray:
    pixels = noise(40, 64, 3)
    pixels[:, columns] = 0
    return pixels


ORDINARY = {
    "noise": picture(noise(40, 64, 3)),
    "black": picture(numpy.zeros((40, 64, 3), numpy.uint8)),
    "white": picture(numpy.full((40, 64, 3), 255, numpy.uint8)),
    "one pixel": picture(noise(1, 1, 3)),
    "black edges": picture(_with_black_columns(0, 1, 2, 61, 62, 63)),
    "black columns where a carrier has them": picture(_with_black_columns(20, 43)),
    "unequal black columns": picture(_with_black_columns(20, 50)),
    "all black but a column": picture(_with_black_columns(*range(63))),
    "grey": picture(noise(40, 64)),
    "RGBA": picture(noise(40, 64, 4)),
    "16 bit": picture(noise(40, 64).astype(numpy.uint16)),
    "16 bit RGB": png(depth=16, pixels=b"\0" * 26),
    "palette": b"",
    "interlaced": png(width=1, height=1, interlace=1, pixels=b"\0abc"),
    "30000 x 30000": png(width=30_000, height=30_000),
    "2^31 x 2^31": png(width=2**31 - 1, height=2**31 - 1),
    "lossless WebP": picture(_with_black_columns(20, 43), "WEBP", lossless=True),
    "lossy WebP": picture(carrier(), "WEBP", quality=95),
    "WebP with transparency": picture(noise(40, 64, 4), "WEBP", lossless=True),
    "JPEG": picture(noise(40, 64, 3), "JPEG"),
    "GIF": picture(noise(40, 64), "GIF"),
    "AVIF": b"\0\0\0\x20ftypavif" + b"\0" * 40,
    "JPEG XL": b"\xff\x0a" + b"\0" * 40,
    "other text": png(chunk(b"tEXt", b"parameters\0a cat, sd-ti-embedding")),
}
_buffer = io.BytesIO()
Image.fromarray(noise(40, 64)).convert("P").save(_buffer, "PNG")
ORDINARY["palette"] = _buffer.getvalue()
_buffer = io.BytesIO()
Image.fromarray(noise(40, 64, 3)).save(_buffer, "PNG", save_all=True, append_images=[Image.new("RGB", (64, 40))])
ORDINARY["animated PNG"] = _buffer.getvalue()
_buffer = io.BytesIO()
Image.fromarray(noise(40, 64, 3)).save(_buffer, "WEBP", save_all=True, lossless=True, append_images=[Image.new("RGB", (64, 40))])
ORDINARY["animated WebP"] = _buffer.getvalue()


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_pictures_carry_nothing(tmp_path: Path, name: str) -> None:
    said = check_refused(tmp_path / "x.png", ORDINARY[name], NoEmbeddingError)
    assert "carries no embedding" in said or "are carried by PNG" in said


@pytest.mark.parametrize(
    "row",
    [pytest.param(bytes([kind]) + bytes(noise(64 * 3)), id=f"filter {kind}") for kind in range(5)],
)
def test_the_uppermost_row_is_told_from_any_filter(row: bytes) -> None:
    data = png(width=64, height=1, pixels=row)
    with Image.open(io.BytesIO(data)) as image:
        expected = numpy.asarray(image)[0]
    source = FileBytes(data)
    assert numpy.array_equal(first_row(source, read_png(source, ())), expected)


def test_a_carrier_is_found_below_cut_away_rows_and_in_rgba(tmp_path: Path) -> None:
    pixels = carrier()
    red = numpy.zeros((5, pixels.shape[1], 3), numpy.uint8)
    red[..., 0] = 200  # a row without all three channels is cut away
    for data in (pixels, numpy.concatenate([red, pixels]), numpy.pad(pixels, ((3, 9), (1, 20), (0, 0)))):
        (tmp_path / "x.png").write_bytes(picture(data))
        assert load(tmp_path / "x.png").vectors["clip_l"].tolist() == [[1.0, 2.0]]


BAD_JSON = {
    "nothing": b"",
    "no JSON": b"hello",
    "not UTF-8": b'{"a": "\xff"}',
    "cut off": GOOD[:-3],
    "cut off in a list": GOOD[:46],
    "nested deeply": b"[" * 100_000 + b"]" * 100_000,
    "dicts nested deeply": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a list nested deeply": GOOD.replace(b"[[1.0", b"[" * 50_000 + b"1.0"),
    "three dimensions": GOOD.replace(b"[[1.0, 2.0]]", b"[[[1.0, 2.0]]]"),
    "mixed dimensions": GOOD.replace(b"[[1.0, 2.0]]", b"[[1.0], 2.0]"),
    "a row outside": GOOD.replace(b"[[1.0, 2.0]]", b"[1.0, [2.0]]"),
    "no comma": GOOD.replace(b"[[1.0, 2.0]]", b"[[1.0] [2.0]]"),
    "comma too many": GOOD.replace(b"[[1.0, 2.0]]", b"[[1.0, 2.0,]]"),
    "comma after": GOOD.replace(b"[[1.0, 2.0]]", b"[[1.0, 2.0],]"),
    "not rectangular": GOOD.replace(b"[[1.0, 2.0]]", b"[[1.0, 2.0], [3.0]]"),
    "empty": GOOD.replace(b"[[1.0, 2.0]]", b"[]"),
    "empty row": GOOD.replace(b"[[1.0, 2.0]]", b"[[]]"),
    "empty rows": GOOD.replace(b"[[1.0, 2.0]]", b"[[], []]"),
    "bracket missing": GOOD.replace(b"[[1.0, 2.0]]", b"[[1.0, 2.0]"),
    "bracket too many": GOOD.replace(b"[[1.0, 2.0]]", b"[[1.0, 2.0]]]"),
    "a scalar": GOOD.replace(b"[[1.0, 2.0]]", b"0"),
    "NaN": GOOD.replace(b"2.0", b"NaN"),
    "Infinity": GOOD.replace(b"2.0", b"-Infinity"),
    "NaN elsewhere": GOOD.replace(b"{", b'{"step": NaN, ', 1),
    "beyond fp64": GOOD.replace(b"2.0", b"1e999"),
    "beyond fp32": GOOD.replace(b"2.0", b"1e99"),
    "true": GOOD.replace(b"2.0", b"true"),
    "null": GOOD.replace(b"2.0", b"null"),
    "a text": GOOD.replace(b"2.0", b'"2.0"'),
    "no number": GOOD.replace(b"2.0", b"2.0.0e-e"),
    "a huge whole number": GOOD.replace(b"2.0", b"1" + b"0" * 400),
    "a whole number of 10,000 digits": GOOD.replace(b"2.0", b"1" * 10_000),
    "a huge whole number elsewhere": GOOD.replace(b"{", b'{"step": %s, ' % (b"1" * 10_000), 1),
    "a key twice": GOOD.replace(b"{", b'{"string_to_param": 1, ', 1),
    "a tensor's place": GOOD.replace(b"{", b'{"a": {"TORCHTENSOR": 0}, ', 1),
    "a tensor's place, spelt otherwise": GOOD.replace(b"{", b'{"a": {"TORCHTENSO\\u0052": 0}, ', 1),
    "a tensor, spelt otherwise": GOOD.replace(b"TORCHTENSOR", b"TORCHTENSO\\u0052"),
    "more in a tensor": GOOD.replace(b"]]", b']], "a": 1'),
    "a tensor in a tensor": GOOD.replace(b"2.0", b'{"TORCHTENSOR": [1.0]}'),
    "many tensors": b"[" + b'{"TORCHTENSOR": [1.0]},' * 5000 + b"1]",
    "many values": GOOD.replace(b"[[1.0, 2.0]]", b"[" + b",".join([b"[%s]" % b",".join([b"1"] * 2**15)] * 140) + b"]"),
    "a wide row": GOOD.replace(b"[[1.0, 2.0]]", b"[%s]" % b",".join([b"1"] * 100_000)),
    "76 vectors": GOOD.replace(b"[[1.0, 2.0]]", b"[%s]" % b",".join([b"[1.0]"] * 76)),
    "much else": GOOD.replace(b"{", b'{"name": "%s", ' % (b"a" * 2**21), 1),
    "two words": GOOD.replace(b'{"*"', b'{"a": 1, "*"'),
    "another dict": b'{"a": 1}',
    "a list": b"[1, 2]",
    "a number": b"5",
    "half of SDXL": b'{"clip_l": {"TORCHTENSOR": [[1.0]]}, "clip_g": 5}',
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_no_embedding_has_is_refused(tmp_path: Path, name: str) -> None:
    check_refused(tmp_path / "x.png", png(text(BAD_JSON[name])))
    if BAD_JSON[name].startswith(b'{"'):
        check_refused(tmp_path / "y.png", picture(carrier(BAD_JSON[name])))


@pytest.mark.parametrize("spelling", ["zTXt", "packed iTXt", "plain iTXt"])
def test_texts_of_every_kind_are_read(tmp_path: Path, spelling: str) -> None:
    value = base64.b64encode(GOOD)
    chunks = {
        "zTXt": chunk(b"zTXt", KEYWORD + b"\0\0" + zlib.compress(value)),
        "packed iTXt": chunk(b"iTXt", KEYWORD + b"\0\1\0en\0\0" + zlib.compress(value)),
        "plain iTXt": chunk(b"iTXt", KEYWORD + b"\0\0\0\0word\0" + value),
    }
    (tmp_path / "x.png").write_bytes(png(chunks[spelling]))
    assert describe(tmp_path / "x.png").widths == {"clip_l": 2}


def _bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj()
    return b"".join(packer.compress(b"A" * 2**20) for _ in range(megabytes)) + packer.flush()


BAD_CHUNKS = {
    "zTXt bomb": chunk(b"zTXt", KEYWORD + b"\0\0" + _bomb(300)),
    "iTXt bomb": chunk(b"iTXt", KEYWORD + b"\0\1\0\0\0" + _bomb(300)),
    "zTXt of another method": chunk(b"zTXt", KEYWORD + b"\0\1" + zlib.compress(base64.b64encode(GOOD))),
    "zTXt cut off": chunk(b"zTXt", KEYWORD + b"\0\0" + zlib.compress(base64.b64encode(GOOD))[:-6]),
    "zTXt that is none": chunk(b"zTXt", KEYWORD + b"\0\0hello"),
    "zTXt of nothing": chunk(b"zTXt", KEYWORD + b"\0"),
    "iTXt of nothing": chunk(b"iTXt", KEYWORD + b"\0\0\0"),
    "tEXt without text": chunk(b"tEXt", KEYWORD),
    "not base64": chunk(b"tEXt", KEYWORD + b"\0{}"),
    "cut base64": chunk(b"tEXt", KEYWORD + b"\0" + base64.b64encode(GOOD)[:-3]),
    "not ASCII": chunk(b"tEXt", KEYWORD + b"\0\xff\xfe"),
    "a wrong checksum": text(GOOD)[:-1] + b"\0",
    "two texts": text(GOOD) + text(GOOD),
    "a chunk without a name": chunk(b"\0\0\0\0", b""),
    "a chunk that reaches beyond the end": struct.pack(">I", 2**31 - 1) + b"tEXt" + KEYWORD + b"\0",
    "a chunk of 4 GB": struct.pack(">I", 2**32 - 1) + b"tEXt" + KEYWORD + b"\0",
    "many chunks": chunk(b"tEXt", b"a\0") * 30_000,
    "a text of 30 MB": chunk(b"tEXt", KEYWORD + b"\0" + b"A" * 30 * 2**20),
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_chunks_that_lie_are_refused(tmp_path: Path, name: str) -> None:
    check_refused(tmp_path / "x.png", png(BAD_CHUNKS[name]))


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    for data in (png(width=0), png(height=0), SIGNATURE, SIGNATURE + chunk(b"IEND", b""), SIGNATURE + chunk(b"IHDR", b"") + png()[8:]):
        check_refused(tmp_path / "x.png", data)
    check_refused(tmp_path / "x.png", png(pixels=b"\0"))  # fewer pixels than promised
    check_refused(tmp_path / "x.png", b"RIFF\xff\xff\xff\xffWEBPVP8L")
    check_refused(tmp_path / "x.png", b"RIFF\x04\0\0\0WEBP", NoEmbeddingError)


def test_hidden_data_that_is_damaged_is_refused(tmp_path: Path) -> None:
    pixels = carrier(GOOD + b" " * 3000)
    assert "damaged" in check_refused(tmp_path / "x.png", picture(_with(pixels, (1, 0, 0), 3)))
    assert "MB" in check_refused(tmp_path / "x.png", picture(carrier(GOOD + b" " * 20 * 2**20)))


def _with(pixels: numpy.ndarray, place: tuple[int, int, int], flip: int) -> numpy.ndarray:
    pixels = pixels.copy()
    pixels[place] ^= flip
    return pixels


def test_what_is_told_of_a_picture_that_is_no_embedding(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(text(b'{"a": 1}')))
    with pytest.raises(UnknownLayoutError, match="'a'") as caught:
        load(tmp_path / "x.png")
    assert not isinstance(caught.value, NoEmbeddingError)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    embedding = Embedding("x", {"clip_l": torch.rand(1, 8)}, Provenance(3, "m", "ab", "a cat"))
    rows = json.dumps(embedding.vectors["clip_l"].tolist()).encode()
    pixels = carrier(GOOD.replace(b"[[1.0, 2.0]]", rows))
    return {"card": draw_card(embedding), "png": picture(pixels), "webp": picture(pixels, "WEBP", lossless=True)}


@pytest.mark.parametrize("kind", ["card", "png", "webp"])
def test_truncation_is_refused(tmp_path: Path, files: dict[str, bytes], kind: str) -> None:
    data = files[kind]
    lengths = {*range(1, min(1500, len(data))), *range(1, len(data), 509), *range(len(data) - 200, len(data))}
    for length in sorted(lengths):
        check_refused(tmp_path / "x.png", data[:length])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["card", "png", "webp"]))
def test_random_damage(tmp_path: Path, files: dict[str, bytes], data: st.DataObject, kind: str) -> None:
    content = bytearray(files[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, min(len(content) - 1, 3000)) | st.integers(0, len(content) - 1))
        action = data.draw(st.sampled_from(["change", "insert", "delete"]))
        piece = data.draw(st.binary(min_size=1, max_size=4))
        content[position : position + {"change": len(piece), "insert": 0, "delete": 7}[action]] = b"" if action == "delete" else piece
    check_survives(tmp_path / "x.png", bytes(content))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.builds(bytes.__add__, st.sampled_from([GOOD[:30], b'{"', b"["]), st.binary(max_size=60)))
def test_random_json(tmp_path: Path, data: bytes) -> None:
    check_survives(tmp_path / "x.png", png(text(data)))


_WATCH = """
import sys, time
from pathlib import Path
import PIL.Image, PIL.PngImagePlugin, PIL.WebPImagePlugin
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats import load

def megabytes(field):  # not getrusage, which counts what the process that started this one took
    line, = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) // 1024

start = megabytes("VmRSS")
for path in sorted(Path(sys.argv[1]).iterdir()):
    begun = time.monotonic()
    try:
        load(path)
    except EmbeddingError:
        pass
    assert time.monotonic() - begun < 20, path.name
    most = megabytes("VmHWM") - start
    assert most < 200, f"{path.name} took {most} MB"
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells it in /proc")
def test_no_picture_takes_much_memory_or_time(tmp_path: Path) -> None:
    side = 2508  # squared, as many pixels as are decoded
    bombs = {
        "1 zTXt bomb.png": png(BAD_CHUNKS["zTXt bomb"]),
        "2 hidden bomb.png": picture(carrier(GOOD + b" " * 20 * 2**20)),
        "3 black.png": picture(numpy.zeros((side, side, 3), numpy.uint8)),
        "3 black.webp": picture(numpy.zeros((side, side, 3), numpy.uint8), "WEBP", lossless=True, method=0, quality=0),
        "4 lists.png": png(text(b'{"a": ' + b"[" * 2**19 + b"]" * 2**19 + b"}")),
        "5 brackets.png": png(text(GOOD.replace(b"[[1.0, 2.0]]", b"[" + b"[1]," * (4 * 2**20 - 20) + b"[1]]"))),
        "6 values.png": png(text(GOOD.replace(b"[[1.0, 2.0]]", b"[" + b",".join([b"[%s]" % b",".join([b"1.5"] * 2**15)] * 75) + b"]"))),
        "7 pixels.png": png(pixels=b"\0" * 100 * 2**20),
        "9 averaged row.png": png(width=6 * 2**20, height=1, colour=6, pixels=b"\3" + b"\7" * 24 * 2**20),
        "9 many parts.png": in_parts(png(width=6 * 2**20, height=1, colour=6, pixels=b"\1" + b"\7" * 24 * 2**20)),
        "8 text.png": png(chunk(b"tEXt", KEYWORD + b"\0" + b"A" * 24 * 2**20)),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    found = subprocess.run([sys.executable, "-c", _WATCH, str(tmp_path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
