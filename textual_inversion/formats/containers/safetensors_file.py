"""Reads and writes the safetensors container without the safetensors library.

A WebUI may replace the functions of the library's reader. This reader also guarantees that the checked bytes are the bytes in use. The
library's writer orders metadata at random, so equal embeddings would have different hashes.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.file_bytes import FileBytes
from textual_inversion.formats.containers.tensors import ELEMENT_SIZES, Contents, StoredTensor, tensor_from

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 4 * 2**20  # a LoRA's header may list every tag of its captions
MAX_TENSORS = 10_000
_MAX_BRACKETS = 200_000  # a dict or a list takes many times the memory of its text
#: Type in the header -> type as shown. Other types, which no embedding has, are shown in lower case.
_DTYPES = {
    "F64": "fp64",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
}


class TensorEntry(NamedTuple):
    """A tensor's header entry: type as shown, shape, and its bytes from `begin` up to `end` in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """The header of a safetensors file: tensors by name, metadata, and the offset of the data in the file."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    start: int


def is_safetensors(source: FileBytes) -> bool:
    """Whether the file begins like a safetensors file: eight bytes of length, then a JSON object."""
    return source.read(8, 9) == b"{"


def read_header(source: FileBytes, *, max_bytes: int = MAX_HEADER_BYTES, max_brackets: int = _MAX_BRACKETS) -> Header:
    """Read the header. Each entry is checked alone, not against the data or the other entries.

    Raises:
        EmbeddingError: the header is damaged, larger than `max_bytes`, or holds more than `max_brackets` objects and lists.
    """
    if source.size < 8:
        raise EmbeddingError("it has no safetensors header; the file is cut off or damaged.")
    (length,) = struct.unpack("<Q", source.read(0, 8))
    if length > source.size - 8:
        raise EmbeddingError(f"the safetensors header claims {length} bytes, the file has {source.size}; the file is cut off or damaged.")
    if length > max_bytes:
        raise EmbeddingError(f"the safetensors header has {length} bytes; an embedding's has some hundreds, {max_bytes} are read.")
    text = source.read(8, 8 + length)
    if text.count(b"{") + text.count(b"[") > max_brackets:
        raise EmbeddingError(f"the safetensors header holds more than {max_brackets} objects and lists; an embedding's has a few.")
    try:
        entries = _JSON.decode(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise EmbeddingError("the safetensors header is not valid JSON; the file is damaged.") from error
    if not isinstance(entries, dict):
        raise EmbeddingError("the safetensors header is not a JSON object; the file is damaged.")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise EmbeddingError("the safetensors header has metadata that is not text; the file is damaged.")
    return Header({key: _tensor_entry(key, entry) for key, entry in entries.items()}, metadata, 8 + length)


def read_safetensors(source: FileBytes) -> Contents:
    """Read the metadata of a safetensors file, and find its tensors without reading them.

    Raises:
        EmbeddingError: the header is damaged, too large, or does not match the data.
    """
    header = read_header(source)
    if len(header.tensors) > MAX_TENSORS:
        raise EmbeddingError(f"the file holds {len(header.tensors)} tensors; an embedding has a few.")
    end = 0
    for begin, stop in sorted((entry.begin, entry.end) for entry in header.tensors.values()):
        if begin != end:
            raise EmbeddingError("the safetensors header lists tensors that overlap or leave gaps; the file is damaged.")
        end = stop
    if header.start + end != source.size:
        rest = source.size - header.start
        raise EmbeddingError(f"the safetensors header promises {end} bytes of data but {rest} follow; the file is cut off or damaged.")
    tree = {key: _stored(source, header.start, entry) for key, entry in header.tensors.items()}
    return Contents("safetensors", tree, header.metadata)


def write_safetensors(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """The bytes of a safetensors file with fp32 `tensors`; the same input gives the same bytes."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    parts: list[bytes] = []
    offset = 0
    for key, tensor in sorted(tensors.items()):
        parts.append(tensor.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(parts[-1])]}
        offset += len(parts[-1])
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers that map the file into memory need aligned data
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


_JSON = json.JSONDecoder(object_pairs_hook=_refuse_twice)  # created once, because a library has thousands of headers


def _tensor_entry(key: str, entry: object) -> TensorEntry:
    values = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = values.get("dtype"), values.get("shape"), values.get("data_offsets")
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise EmbeddingError(f"the safetensors header describes {key[:60]!r} wrongly; the file is damaged.", field=key)
    begin, end = offsets
    known = _DTYPES.get(dtype)
    if known is not None and end - begin != math.prod(shape) * ELEMENT_SIZES[known]:
        raise EmbeddingError(f"{key[:60]!r} has shape {shape[:4]} as {dtype} but {end - begin} bytes; the file is damaged.", field=key)
    return TensorEntry(known or dtype[:20].lower(), tuple(shape), begin, end)


def _counts(value: object) -> TypeGuard[list[int]]:
    """Whether `value` is a short list of whole numbers that can be sizes or offsets."""
    return isinstance(value, list) and len(value) <= 8 and all(type(item) is int and 0 <= item < 2**40 for item in value)


def _stored(source: FileBytes, start: int, entry: TensorEntry) -> StoredTensor:
    def read() -> torch.Tensor:
        return tensor_from(source.read(start + entry.begin, start + entry.end), entry.dtype, entry.shape)

    return StoredTensor(entry.shape, entry.dtype, read)
