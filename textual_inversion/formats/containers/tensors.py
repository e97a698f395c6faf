"""The result of reading a container: plain data, and stored tensors that are read later."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from textual_inversion.errors import EmbeddingError

if TYPE_CHECKING:
    import torch

#: Types in which files store vectors, as shown to users.
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
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
#: Type as shown -> the type's name in torch. A bool is read as uint8.
_TORCH_NAMES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "bool": "uint8"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. The file contains all of its bytes, but they are not read yet.

    Attributes:
        shape: its sizes, each at least 1.
        dtype: `fp16`, `bf16`, `fp32`, `fp64`, or the name of another type, which no embedding has.
        read: returns the values as a CPU tensor of this shape and type; the file must still be open.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], torch.Tensor]


class Parameters(dict[Any, Any]):
    """The contents of a `torch.nn.ParameterDict`."""


@dataclass(frozen=True)
class Contents:
    """A container's data, already safe: plain dicts with text or number keys, lists, numbers, texts and stored tensors.

    Attributes:
        container: `safetensors`, `pickle`, `picture chunk` or `picture data`.
        tree: the contents, usually a dict of tensors; a `ParameterDict` becomes `Parameters`.
        metadata: the texts of a safetensors header or of a PNG; empty for other containers.
    """

    container: str
    tree: Any
    metadata: dict[str, str] = field(default_factory=dict)


def tensor_from(data: bytes | memoryview, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """The tensor of `dtype` and `shape` whose little-endian values are `data`.

    Raises:
        EmbeddingError: `data` is too short, because the file was cut while it was read, or no embedding has this type.
    """
    import torch

    if dtype not in ELEMENT_SIZES:
        raise EmbeddingError(f"it holds values of type {dtype}; expected fp16, bf16, fp32 or fp64.")
    if len(data) != math.prod(shape) * ELEMENT_SIZES[dtype]:
        raise EmbeddingError("it ended while it was read; try again when nothing else writes it.")
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, _TORCH_NAMES.get(dtype, dtype))).reshape(tuple(shape))
