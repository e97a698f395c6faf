"""What a container's reader hands on: plain data, and tensors that are known to lie in the file but are read later."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from textual_inversion.errors import EmbeddingError

if TYPE_CHECKING:
    import torch

#: Types that an embedding's vectors are stored in, as they are shown.
VECTOR_DTYPES = ("fp16", "bf16", "fp32", "fp64")
MAX_VALUES = 2**22  # of one embedding: four times 75 vectors of the widest text encoder
#: Type as shown -> bytes of an element.
ELEMENT_SIZES = {
    "fp64": 8,
    "fp32": 4,
    "fp16": 2,
    "bf16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
#: Type as shown -> the type's name in torch; a bool is read as the byte that it is.
_TORCH_NAMES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "bool": "uint8"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file: it is known to be there in full, but not read yet.

    Attributes:
        shape: its sizes, each at least 1.
        dtype: `fp16`, `bf16`, `fp32`, `fp64`, or the name of another type, which no embedding has.
        read: the values as a CPU tensor of that shape and type, while the file is open.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], torch.Tensor]


class Parameters(dict[Any, Any]):
    """What a `torch.nn.ParameterDict` held."""


@dataclass(frozen=True)
class Contents:
    """A container's data, already safe: plain dicts with text or number keys, lists, numbers, texts and stored tensors.

    Attributes:
        container: `safetensors`, `pickle`, `picture chunk` or `picture data`.
        tree: what it holds, most often a dict of tensors; a `ParameterDict` comes as `Parameters`.
        metadata: texts of a safetensors header, or beside the embedding in a PNG; empty elsewhere.
    """

    container: str
    tree: Any
    metadata: dict[str, str] = field(default_factory=dict)


def tensor_from(data: bytes | memoryview, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """The tensor of `dtype` and `shape` whose little-endian values are `data`.

    Raises:
        EmbeddingError: too few bytes, because the file was cut while it was read, or a type that no tensor of an embedding has.
    """
    import torch

    if dtype not in ELEMENT_SIZES:
        raise EmbeddingError(f"it holds values of type {dtype}; expected fp16, bf16, fp32 or fp64.")
    if len(data) != math.prod(shape) * ELEMENT_SIZES[dtype]:
        raise EmbeddingError("it ended while it was read; try again when nothing else writes it.")
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, _TORCH_NAMES.get(dtype, dtype))).reshape(tuple(shape))
