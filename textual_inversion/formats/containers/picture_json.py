"""Dicts of tensors as JSON, the way A1111 puts them into pictures: a tensor is `{"TORCHTENSOR": nested list}`.

Knows nothing of pictures. The lists of numbers, nearly all of the text, are measured by counting and read only when asked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy

from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.layout import MAX_VALUES, StoredTensor

if TYPE_CHECKING:
    import torch

MAX_JSON_BYTES = 16 * 2**20  # 75 vectors of the widest text encoders take 10 MB
_MAX_OTHER_BYTES = 2**20  # of all that is no tensor
_MAX_TENSORS = 100
_MAX_WIDTH = 2**16
_MAX_ROWS = 10_000  # an empty row takes more memory than it has letters
_TENSOR = "TORCHTENSOR"
_OPENS_LIST = re.compile(rb"[ \t\r\n]{0,100}:[ \t\r\n]{0,100}(?=\[)")
_OF_NUMBERS = b"0123456789+-.eE,[] \t\r\n"
_BLANK = b" \t\r\n"
_DAMAGED = "its JSON is not as A1111 writes it; the picture is damaged."


def tree_from_json(text: bytes) -> Any:
    """The dict in `text`, its lists of numbers as stored tensors [d] or [n, d] of type fp64.

    Raises:
        EmbeddingError: no JSON, a key twice, a list that is not rectangular or not of numbers, or too much of anything.
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
    """`tree`, dicts of texts, numbers and fp32 tensors, as JSON from which each fp32 value is read back to the bit."""
    return _json_of(tree).encode("ascii")


def _cut_lists(text: bytes) -> tuple[list[bytes], bytes]:
    """The tensors' lists, and the text with the lists' numbers in their places.

    A `"TORCHTENSOR"` with its quotes cannot stand inside a JSON text, where they would be escaped, so it is always a key.
    """
    lists: list[bytes] = []
    rest: list[bytes] = []
    end = 0
    key = b'"%s"' % _TENSOR.encode()
    while (found := text.find(key, end)) >= 0:
        opening = _OPENS_LIST.match(text, found + len(key))
        close = text.find(b"}", found)
        if opening is None or close < 0 or len(lists) == _MAX_TENSORS:
            raise EmbeddingError(_DAMAGED)
        rest += [text[end : opening.end()], b"%d" % len(lists)]
        lists.append(text[opening.end() : close].strip(_BLANK))
        end = close
    return lists, b"".join([*rest, text[end:]])


def _parse(text: bytes, tensors: list[StoredTensor]) -> Any:
    left = dict(enumerate(tensors))

    def build(pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        if _TENSOR not in found:
            return found
        if len(found) != 1 or type(found[_TENSOR]) is not int:
            raise ValueError("a tensor that was not cut out")
        return left.pop(found[_TENSOR])  # a second use of its number is no number of ours

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=build, parse_constant=_refuse)
    except (ValueError, KeyError, RecursionError) as error:
        raise EmbeddingError(_DAMAGED) from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


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
    """What stands between the inner brackets, or between the outer ones where there are no others."""
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
    rows = ", ".join("[" + ", ".join(map(_number, row)) + "]" for row in value.tolist())
    return f'{{"{_TENSOR}": [{rows}]}}'


def _number(value: float) -> str:
    """Nine digits, which lie so close to an fp32 value that reading them as fp64 first changes nothing."""
    text = f"{value:.9g}"
    return text if "." in text or "e" in text else f"{text}.0"  # A1111 would make a tensor of integers
