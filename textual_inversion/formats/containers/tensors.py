"""The types that tensors are stored in, by the names under which they are shown. Knows nothing of files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual_inversion.errors import EmbeddingError

if TYPE_CHECKING:
    import torch

#: Name as shown -> bytes of an element, and the type's name in torch.
_STORED = {
    "fp64": (8, "float64"),
    "fp32": (4, "float32"),
    "fp16": (2, "float16"),
    "bf16": (2, "bfloat16"),
    "int64": (8, "int64"),
    "int32": (4, "int32"),
    "int16": (2, "int16"),
    "int8": (1, "int8"),
    "uint8": (1, "uint8"),
    "bool": (1, "uint8"),
}


def element_size(dtype: str) -> int:
    """Bytes that an element of `dtype` takes."""
    return _STORED[dtype][0]


def tensor_from(data: bytes | memoryview, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """The tensor of `dtype` and `shape` whose little-endian values are `data`.

    Raises:
        EmbeddingError: too few bytes, because the file was cut while it was read, or a type that no tensor of an embedding has.
    """
    import torch

    if dtype not in _STORED:
        raise EmbeddingError(f"it holds values of type {dtype}; expected fp16, bf16, fp32 or fp64.")
    if len(data) != math.prod(shape) * element_size(dtype):
        raise EmbeddingError("it ended while it was read; try again when nothing else writes it.")
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, _STORED[dtype][1])).reshape(tuple(shape))
