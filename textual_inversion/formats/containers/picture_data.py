"""Data hidden in the pixels of a picture, the way A1111 1.10 hides an embedding. Knows nothing of files and of what the data says.

The data is packed by zlib and its bytes cut in halves: the low ones lie in the low four bits of a block at the left edge, channel by
channel and row by row, the high ones in a block of the same size at the right edge. A black column parts each block from the
picture between them. All halves are mixed with a fixed sequence; the high four bits of the blocks are decoration.
"""

from __future__ import annotations

import zlib

import numpy

from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.picture_json import MAX_JSON_BYTES
from textual_inversion.formats.containers.picture_png import inflate

MAX_PIXELS = 6 * 2**20  # 75 vectors for SDXL take a fifth of that
_CHANNELS = 3
_MULTIPLIER, _INCREMENT = 1664525, 1013904223  # the sequence's: a linear congruence modulo 2^32
_LEVEL = 9
_PACKED_BY_A1111 = b"\x78\xda"  # zlib's first bytes at that level; what follows may be damaged


def hide(picture: numpy.ndarray, data: bytes, shades: numpy.ndarray) -> numpy.ndarray:
    """A wider picture with `data` in it.

    Args:
        picture: uint8 [h, w, 3].
        data: JSON, which unpacks to what it was.
        shades: values from 0 to 1 that decorate the blocks, at least one.

    Raises:
        EmbeddingError: the result would have over 6 million pixels, which is more than is read.
    """
    height, width = picture.shape[:2]
    packed = numpy.frombuffer(zlib.compress(data, _LEVEL), numpy.uint8)
    columns = -(-len(packed) // (height * _CHANNELS))
    if height * (width + 2 * columns + 2) > MAX_PIXELS:
        raise EmbeddingError("it has too many values for a picture; save it as .safetensors.")
    packed = numpy.resize(packed, (height, columns, _CHANNELS))
    mix = _sequence(packed.size).reshape(packed.shape)
    low, high = (packed & 15) ^ mix, (packed >> 4) ^ mix
    line = numpy.zeros((height, 1, _CHANNELS), numpy.uint8)
    left, right = (low | _decoration(height, columns, shades)), (high | _decoration(height, columns, shades[::-1]))
    return numpy.concatenate([left, line, picture, line, right], axis=1)


def find(picture: numpy.ndarray) -> bytes | None:
    """The data in `picture`, uint8 [h, w, 3]; None when it hides none.

    Raises:
        EmbeddingError: it hides data that is damaged or unpacks to over 16 MB.
    """
    packed = _packed(_cropped(picture))
    if packed is None or not (packed.startswith(_PACKED_BY_A1111) or _begins_as_json(packed)):
        return None
    return inflate(packed, MAX_JSON_BYTES)


def may_hide(row: numpy.ndarray) -> bool:
    """Whether a picture with this uppermost row, uint8 [w, 3 or more], can hide data: it crosses both black columns, or is cut away."""
    row = row[:, :_CHANNELS]
    inside = bool((row.min(axis=1) > 0).any())
    return not inside or int(numpy.count_nonzero((row & 15).max(axis=1) == 0)) >= 2


def _cropped(picture: numpy.ndarray) -> numpy.ndarray:
    """Without the rows and columns at the edges in which no pixel has all its channels above 0."""
    bright = picture.min(axis=2) > 0  # h w
    columns, rows = numpy.flatnonzero(bright.any(axis=0)), numpy.flatnonzero(bright.any(axis=1))
    if not len(columns):
        return picture[:0, :0]
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _packed(picture: numpy.ndarray) -> bytes | None:
    """The bytes of the two blocks, put together again; None where there are no blocks."""
    black = numpy.flatnonzero(~(picture & 15).any(axis=(0, 2)))
    if len(black) < 2 or black[0] == 0 or black[0] != picture.shape[1] - 1 - black[-1]:
        return None
    low, high = picture[:, : black[0]] & 15, picture[:, black[-1] + 1 :] & 15
    mix = _sequence(low.size).reshape(low.shape)
    return bytes(((high ^ mix) << 4) | (low ^ mix))


def _begins_as_json(packed: bytes) -> bool:
    """Whether the bytes unpack to the beginning of a JSON object, which those of an ordinary picture never do."""
    try:
        return zlib.decompressobj().decompress(packed[:4096], 2) == b'{"'
    except zlib.error:
        return False


def _sequence(length: int) -> numpy.ndarray:
    """The values from 0 to 15 that the halves are mixed with, uint8 [length]."""
    # s(k) = c * (1 + a + … + a^(k-1)) mod 2^32, by sums and products that wrap around
    powers = numpy.full(length, _MULTIPLIER, numpy.uint32)
    powers[:1] = 1
    numpy.multiply.accumulate(powers, out=powers)
    numpy.add.accumulate(powers, out=powers)
    powers *= numpy.uint32(_INCREMENT)
    return (powers % numpy.uint32(255) & numpy.uint32(15)).astype(numpy.uint8)


def _decoration(height: int, columns: int, shades: numpy.ndarray) -> numpy.ndarray:
    """High bits of a block, uint8 [height, columns, 3]: upright bars of the vectors' values on a dark ground.

    None is 0, so that a reader that cuts away black edges leaves the block whole.
    """
    tall = numpy.resize(shades, columns) * height / 2  # half of a bar's length
    distance = numpy.abs(numpy.arange(height) - (height - 1) / 2)
    lit = distance[:, None] <= tall[None]
    bar, ground = numpy.array([0x60, 0x80, 0xB0], numpy.uint8), numpy.array([0x10, 0x10, 0x20], numpy.uint8)
    return numpy.where(lit[..., None], bar, ground)
