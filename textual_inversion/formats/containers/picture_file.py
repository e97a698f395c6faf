"""Reads the embedding in a picture as plain data, from a PNG text or from the pixels.

Reading a text does not decode the picture. Pillow decodes the pixels only when the kind, the size and the top row of the picture show
that the pixels may hide data.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from io import BytesIO
from typing import Any

import numpy

from textual_inversion.errors import EmbeddingError, NoEmbeddingError
from textual_inversion.formats.containers.file_bytes import FileBytes
from textual_inversion.formats.containers.picture_data import MAX_PIXELS, find, may_hide, tree_from_json
from textual_inversion.formats.containers.picture_png import SIGNATURE, Png, first_row, only_pixels, read_png, read_text
from textual_inversion.formats.containers.tensors import Contents

EMBEDDING_KEYWORD = "sd-ti-embedding"
METADATA_KEYWORD = "sd-ti-metadata"
CHUNK, DATA = "picture chunk", "picture data"
_KEYWORDS = (EMBEDDING_KEYWORD.encode(), METADATA_KEYWORD.encode())
_MAX_METADATA_BYTES = 2**16
_MAX_FILE_BYTES = 32 * 2**20  # more than the largest allowed picture has uncompressed
_MAX_WEBP_CHUNKS = 100
_ORDINARY = "it is an ordinary picture that carries no embedding; if it should, take the original PNG, as copies and smaller sizes lose it."
#: (offset, bytes at this offset, kind of picture).
_OTHER_KINDS = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"GIF8", "GIF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
)


def is_picture(source: FileBytes) -> bool:
    """Whether the file begins like a PNG, WebP, JPEG, GIF, AVIF or JPEG XL picture."""
    head = source.read(0, 16)
    return head.startswith(SIGNATURE) or _is_webp(head) or _other_kind(head) is not None


def read_picture(source: FileBytes) -> Contents:
    """Read the picture's data as a `picture chunk` with its metadata, or as `picture data`.

    Raises:
        NoEmbeddingError: the picture carries no embedding.
        EmbeddingError: the picture or its data is damaged or too large.
    """
    head = source.read(0, 16)
    if (kind := _other_kind(head)) is not None:
        raise NoEmbeddingError(f"it is a {kind} picture, and embeddings are carried by PNG and lossless WebP only; take the original PNG.")
    if _is_webp(head):
        return _read_hidden(_webp_pixels(source), {})
    png = read_png(source, _KEYWORDS)
    metadata = _metadata(source, png)
    if (chunk := png.texts.get(_KEYWORDS[0])) is None:
        return _read_hidden(_png_pixels(source, png), metadata)
    try:
        data = base64.b64decode(read_text(source, chunk).strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise EmbeddingError(f"its text {EMBEDDING_KEYWORD} is not base64; the picture is damaged.", field=EMBEDDING_KEYWORD) from error
    return Contents(CHUNK, tree_from_json(data), metadata)


def _read_hidden(pixels: numpy.ndarray, metadata: dict[str, str]) -> Contents:
    data = find(pixels)
    if data is None:
        raise NoEmbeddingError(_ORDINARY)
    return Contents(DATA, tree_from_json(data), metadata)


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _other_kind(head: bytes) -> str | None:
    return next((kind for begin, magic, kind in _OTHER_KINDS if head[begin:].startswith(magic)), None)


def _metadata(source: FileBytes, png: Png) -> dict[str, str]:
    """The metadata texts of the PNG. Damaged texts give an empty dict, because the embedding is usable without them."""
    chunk = png.texts.get(_KEYWORDS[1])
    if chunk is None or chunk.kind != b"tEXt" or chunk.end - chunk.begin > _MAX_METADATA_BYTES:
        return {}
    try:
        texts: Any = json.loads(read_text(source, chunk).decode("ascii"))
    except (ValueError, RecursionError):
        return {}
    return {key: value for key, value in texts.items() if isinstance(value, str)} if isinstance(texts, dict) else {}


def _png_pixels(source: FileBytes, png: Png) -> numpy.ndarray:
    if not png.rgb or png.width * png.height > MAX_PIXELS or source.size > _MAX_FILE_BYTES:
        raise NoEmbeddingError(_ORDINARY)
    row = first_row(source, png)
    if row is not None and not may_hide(row):
        raise NoEmbeddingError(_ORDINARY)
    return _decode(only_pixels(source, png), (png.width, png.height))


def _webp_pixels(source: FileBytes) -> numpy.ndarray:
    size = _lossless_size(source)
    if size is None or size[0] * size[1] > MAX_PIXELS or source.size > _MAX_FILE_BYTES:
        raise NoEmbeddingError(_ORDINARY)
    return _decode(source.all(), size)


def _lossless_size(source: FileBytes) -> tuple[int, int] | None:
    """Width and height of a still, lossless WebP (https://developers.google.com/speed/webp/docs/riff_container); None for others."""
    (length,) = struct.unpack("<I", source.read(4, 8))
    if length + 8 > source.size:
        raise EmbeddingError("it is a WebP picture that is cut off; fetch it again.")
    begin = 12
    for _ in range(_MAX_WEBP_CHUNKS):
        head = source.read(begin, begin + 13)
        if len(head) != 13:
            break
        kind, size = struct.unpack("<4sI", head[:8])
        if kind in (b"VP8 ", b"ANIM", b"ANMF"):
            break
        if kind == b"VP8L":
            bits = int.from_bytes(head[9:], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        begin += 8 + size + size % 2
    return None


def _decode(data: bytes, size: tuple[int, int]) -> numpy.ndarray:
    """Decode the pixels, uint8 [h, w, 3], of a picture whose header gives `size` (width, height)."""
    from PIL import Image

    damaged = "it is a picture that is cut off or damaged; fetch it again."
    try:
        with Image.open(BytesIO(data), formats=("PNG", "WEBP")) as image:
            if image.size != size:
                raise EmbeddingError(damaged)
            return numpy.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise EmbeddingError(damaged) from error
