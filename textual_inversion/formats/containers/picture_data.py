"""Reads and writes the data of A1111's embedding pictures: a dict of tensors as JSON, and this JSON hidden in pixels (A1111 1.10).

In the JSON a tensor is `{"TORCHTENSOR": nested list}`. These lists are nearly all of the text. The reader counts their elements to
find the shapes, and parses the numbers only on demand.

To hide the JSON in pixels, A1111 compresses it with zlib and splits each byte into two halves of four bits. The low halves go into the
low four bits of a block at the left edge, channel by channel and row by row. The high halves go into a block of the same size at the
right edge. A black column separates each block from the picture between them. A1111 XORs all halves with a fixed sequence. The high
four bits of the blocks are decoration.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy

from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.picture_png import inflate
from textual_inversion.formats.containers.tensors import MAX_VALUES, StoredTensor

if TYPE_CHECKING:
    import torch

MAX_JSON_BYTES = 16 * 2**20  # 75 vectors of the widest text encoders take 10 MB
_MAX_OTHER_BYTES = 2**20  # of the text without the tensors' lists
_MAX_TENSORS = 100
_MAX_WIDTH = 2**16
_MAX_ROWS = 10_000  # an empty row takes more memory than its text
_TENSOR = "TORCHTENSOR"
_OPENS_LIST = re.compile(rb"[ \t\r\n]{0,100}:[ \t\r\n]{0,100}(?=\[)")
_OF_NUMBERS = b"0123456789+-.eE,[] \t\r\n"
_BLANK = b" \t\r\n"
_DAMAGED = "its JSON is not as A1111 writes it; the picture is damaged."
MAX_PIXELS = 6 * 2**20  # 75 vectors for SDXL need a fifth of these
_CHANNELS = 3
_MULTIPLIER, _INCREMENT = 1664525, 1013904223  # of the fixed sequence, a linear congruential generator modulo 2^32
_LEVEL = 9
_PACKED_BY_A1111 = b"\x78\xda"  # zlib's first bytes at this level; the rest may still be damaged


def tree_from_json(text: bytes) -> Any:
    """Parse the dict in `text`. Its lists of numbers become stored tensors [d] or [n, d] of type fp64.

    Raises:
        EmbeddingError: the text is not JSON, repeats a key, exceeds a limit, or has a list that is not rectangular or not of numbers.
    """
    if len(text) > MAX_JSON_BYTES:
        raise EmbeddingError(f"it carries over {MAX_JSON_BYTES // 2**20} MB of JSON; an embedding has a few.")
    lists, rest = _cut_lists(text)
    tensors = [_stored(numbers) for numbers in lists]
    if sum(math.prod(tensor.shape) for tensor in tensors) > MAX_VALUES:
        raise EmbeddingError(f"it carries more than {MAX_VALUES} values, which no text encoder is wide enough for.")
    if len(rest) > _MAX_OTHER_BYTES:
        raise EmbeddingError("it carries over 1 MB of JSON besides the vectors; an embedding has a few words.")
    return _parse(rest, tensors)


def tree_to_json(tree: dict[str, Any]) -> bytes:
    """Write `tree` (dicts of texts, numbers and fp32 tensors) as JSON. Reading the JSON gives exactly the same fp32 values."""
    return _json_of(tree).encode("ascii")


def _cut_lists(text: bytes) -> tuple[list[bytes], bytes]:
    """Return the tensors' lists, and the text in which each list is replaced by its index.

    A `"TORCHTENSOR"` with its quotes is always a key: inside a JSON string the quotes would be escaped.
    """
    lists: list[bytes] = []
    rest: list[bytes] = []
    end = 0
    key = b'"%s"' % _TENSOR.encode()
    while (begin := text.find(key, end)) >= 0:
        opening = _OPENS_LIST.match(text, begin + len(key))
        close = text.find(b"}", begin)
        if opening is None or close < 0 or len(lists) == _MAX_TENSORS:
            raise EmbeddingError(_DAMAGED)
        rest += [text[end : opening.end()], b"%d" % len(lists)]
        lists.append(text[opening.end() : close].strip(_BLANK))
        end = close
    return lists, b"".join([*rest, text[end:]])


def _parse(text: bytes, tensors: list[StoredTensor]) -> Any:
    left = dict(enumerate(tensors))

    def build(pairs: list[tuple[str, Any]]) -> Any:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a key occurs twice")
        if _TENSOR not in value:
            return value
        if len(value) != 1 or type(value[_TENSOR]) is not int:
            raise ValueError("a tensor whose list was not cut out")
        return left.pop(value[_TENSOR])  # each index belongs to one tensor, so a second use is refused

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=build, parse_constant=refuse)
    except (ValueError, KeyError, RecursionError) as error:
        raise EmbeddingError(_DAMAGED) from error


def _stored(numbers: bytes) -> StoredTensor:
    if numbers.translate(None, _OF_NUMBERS):
        raise EmbeddingError("its vectors hold something that is no number, such as NaN or a text; the picture is damaged.")
    if numbers.count(b"[") > _MAX_ROWS or numbers.count(b"]") > _MAX_ROWS:
        raise EmbeddingError(f"it carries over {_MAX_ROWS} lists of numbers; an embedding has at most 75.")
    widths = [row.count(b",") + 1 for row in _rows(numbers)]
    if not widths or len(set(widths)) != 1 or widths[0] > _MAX_WIDTH:
        raise EmbeddingError(f"its vectors are not a list of equally long lists of at most {_MAX_WIDTH} numbers; the picture is damaged.")
    flat = numbers.count(b"[") == 1
    shape = (widths[0],) if flat else (len(widths), widths[0])

    def read() -> torch.Tensor:
        import torch

        values = numpy.empty((len(widths), widths[0]), dtype=numpy.float64)
        try:
            for position, row in enumerate(_rows(numbers)):
                values[position] = json.loads(b"[%s]" % row)
        except (ValueError, OverflowError) as error:
            raise EmbeddingError("its vectors hold something that is no number; the picture is damaged.") from error
        return torch.from_numpy(values.reshape(shape))

    return StoredTensor(shape, "fp64", read)


def _rows(numbers: bytes) -> Iterator[bytes]:
    """The text between each pair of inner brackets, or between the outer brackets when there are no inner ones."""
    inner = numbers[1:-1].strip(_BLANK)
    if not numbers.endswith(b"]") or not inner:
        raise EmbeddingError(_DAMAGED)
    if b"[" not in inner and b"]" not in inner:
        yield inner
        return
    *rows, last = inner.split(b"]")
    if last:
        raise EmbeddingError(_DAMAGED)
    for position, row in enumerate(rows):
        comma, bracket, values = row.partition(b"[")
        if not bracket or b"[" in values or comma.strip(_BLANK) != (b"," if position else b"") or not values.strip(_BLANK):
            raise EmbeddingError("its vectors are nested in a way that A1111 does not write; the picture is damaged.")
        yield values


def _json_of(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {_json_of(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, (str, int, float)):
        return json.dumps(value)
    # nine digits identify an fp32 value, even when a reader parses them as fp64 first
    rows = [[f"{number:.9g}" for number in row] for row in value.tolist()]
    # without a point or an exponent, A1111 would create a tensor of integers
    rows = [[text if "." in text or "e" in text else f"{text}.0" for text in row] for row in rows]
    return f'{{"{_TENSOR}": [{", ".join("[" + ", ".join(row) + "]" for row in rows)}]}}'


def hide(picture: numpy.ndarray, data: bytes, shades: numpy.ndarray) -> numpy.ndarray:
    """Return a wider picture with `data` hidden in it.

    Args:
        picture: uint8 [h, w, 3].
        data: JSON of any length that fits; `find` returns the same bytes.
        shades: values from 0 to 1 that decorate the blocks, at least one.

    Raises:
        EmbeddingError: the result would have over 6 million pixels, the limit for reading.
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
    """Return the data hidden in `picture`, uint8 [h, w, 3]; None when there is none.

    Raises:
        EmbeddingError: the hidden data is damaged or unpacks to over 16 MB.
    """
    # like A1111, cut off the rows and columns at the edges where every pixel has a channel of 0
    bright = picture.min(axis=2) > 0  # h w
    columns, rows = numpy.flatnonzero(bright.any(axis=0)), numpy.flatnonzero(bright.any(axis=1))
    packed = _packed(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]) if len(columns) else None
    if packed is None:
        return None
    if not packed.startswith(_PACKED_BY_A1111):
        try:  # the bytes of an ordinary picture never unpack to the beginning of a JSON object
            if zlib.decompressobj().decompress(packed[:4096], 2) != b'{"':
                return None
        except zlib.error:
            return None
    return inflate(packed, MAX_JSON_BYTES)


def may_hide(row: numpy.ndarray) -> bool:
    """Whether a picture with this top row, uint8 [w, 3 or more], can hide data: the row crosses both black columns, or would be cut off."""
    row = row[:, :_CHANNELS]
    inside = bool((row.min(axis=1) > 0).any())
    return not inside or int(numpy.count_nonzero((row & 15).max(axis=1) == 0)) >= 2


def _packed(picture: numpy.ndarray) -> bytes | None:
    """Join the halves of the two blocks to bytes; None when there are no blocks."""
    black = numpy.flatnonzero(~(picture & 15).any(axis=(0, 2)))
    if len(black) < 2 or black[0] == 0 or black[0] != picture.shape[1] - 1 - black[-1]:
        return None
    low, high = picture[:, : black[0]] & 15, picture[:, black[-1] + 1 :] & 15
    mix = _sequence(low.size).reshape(low.shape)
    return bytes(((high ^ mix) << 4) | (low ^ mix))


def _sequence(length: int) -> numpy.ndarray:
    """The fixed sequence for the XOR: values from 0 to 15, uint8 [length]."""
    # s(k) = c * (1 + a + … + a^(k-1)) mod 2^32; uint32 arithmetic wraps around
    powers = numpy.full(length, _MULTIPLIER, numpy.uint32)
    powers[:1] = 1
    numpy.multiply.accumulate(powers, out=powers)
    numpy.add.accumulate(powers, out=powers)
    powers *= numpy.uint32(_INCREMENT)
    return (powers % numpy.uint32(255) & numpy.uint32(15)).astype(numpy.uint8)


def _decoration(height: int, columns: int, shades: numpy.ndarray) -> numpy.ndarray:
    """High bits of a block, uint8 [height, columns, 3]: vertical bars on a dark background show the vectors' values.

    No value is 0, so a reader that cuts off black edges keeps the whole block.
    """
    tall = numpy.resize(shades, columns) * height / 2  # half the length of each bar
    distance = numpy.abs(numpy.arange(height) - (height - 1) / 2)
    lit = distance[:, None] <= tall[None]
    bar, ground = numpy.array([0x60, 0x80, 0xB0], numpy.uint8), numpy.array([0x10, 0x10, 0x20], numpy.uint8)
    return numpy.where(lit[..., None], bar, ground)
