"""PyTorch's two file formats, zip and legacy stream, as plain data and tensors. Runs nothing and knows nothing of embeddings."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from textual_inversion.errors import EmbeddingError, UnsafeFileError
from textual_inversion.formats.containers.file_bytes import FileBytes
from textual_inversion.formats.containers.pickle_tags import ModuleState, StorageSpec, TensorSpec
from textual_inversion.formats.containers.tensors import element_size, tensor_from
from textual_inversion.formats.containers.unpickler import walk_pickle
from textual_inversion.formats.containers.zip_file import ZIP_START, read_zip
from textual_inversion.formats.layout import Contents, Parameters, StoredTensor

if TYPE_CHECKING:
    import torch

MAX_PICKLE_BYTES = 4 * 2**20
MAX_ELEMENTS = 2**24  # of all tensors together; a stride of 0 claims any size from few bytes
MAX_VALUES = 50_000
MAX_DEPTH = 8
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def is_torch_file(source: FileBytes) -> bool:
    """Whether the file begins as a zip or as a binary pickle."""
    head = source.read(0, 4)
    return head == ZIP_START or head[:1] == b"\x80"


def read_torch_file(source: FileBytes) -> Contents:
    """What `torch.save` wrote, in either of its formats; tensors are checked against their data but not built yet.

    Raises:
        UnsafeFileError: the file does or hides more than data.
        EmbeddingError: the file is damaged or too large.
    """
    data = source.all()
    return Contents("pickle", _read_zip(data) if data.startswith(ZIP_START) else _read_legacy(data))


def _read_zip(data: bytes) -> Any:
    """The plain data of its pickle, and of the tensors beside that."""
    entries = read_zip(data)
    if "data.pkl" not in entries:
        raise EmbeddingError("it is a zip file without data.pkl, so PyTorch did not write it.")
    if len(entries["data.pkl"]) > MAX_PICKLE_BYTES:
        raise EmbeddingError(f"its pickle has {len(entries['data.pkl'])} bytes; an embedding's has a few thousand.")
    if entries.get("byteorder", b"little") != b"little":
        raise EmbeddingError("it was written on a big-endian machine; convert it there to safetensors.")
    tree = walk_pickle(BytesIO(entries["data.pkl"]))
    return _Builder({key.removeprefix("data/"): part for key, part in entries.items()}).build(tree)


def _read_legacy(data: bytes) -> Any:
    """Five pickles (magic, protocol, system, object, storage keys), then for each key its element count and raw data."""
    stream = BytesIO(data[:MAX_PICKLE_BYTES])
    if walk_pickle(stream) != _LEGACY_MAGIC or walk_pickle(stream) != _LEGACY_PROTOCOL:
        raise EmbeddingError("it is a pickle, but not one that PyTorch wrote.")
    system = walk_pickle(stream)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise EmbeddingError("it was written on a big-endian machine; convert it there to safetensors.")
    specs: list[StorageSpec] = []
    tree, keys = walk_pickle(stream, specs), walk_pickle(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise EmbeddingError("its list of tensor data is damaged.")
    storages = _slice_storages(memoryview(data)[stream.tell() :], keys, {spec.key: spec for spec in specs})
    return _Builder(storages).build(tree)


def _slice_storages(data: memoryview, keys: list[str], specs: dict[str, StorageSpec]) -> dict[str, memoryview]:
    """Key -> its bytes within `data`, which holds nothing else."""
    found: dict[str, memoryview] = {}
    for key in keys:
        spec = specs.get(key)
        if spec is None or len(data) < 8 or struct.unpack("<q", data[:8])[0] != spec.numel:
            raise EmbeddingError("its tensor data does not match its pickle; the file is cut off or damaged.")
        end = 8 + max(spec.numel, 0) * element_size(spec.dtype)
        found[key], data = data[8:end], data[end:]
    if data:
        raise UnsafeFileError("other data follows after its tensors.")
    return found


class _Builder:
    """Turns a walked pickle into plain data, with every tensor checked against its storage."""

    def __init__(self, storages: Mapping[str, memoryview]) -> None:
        self._storages = storages
        self._elements = 0
        self._values = 0

    def build(self, value: Any, depth: int = 0) -> Any:
        """Plain data; bounded, because a pickle's lists may contain themselves."""
        self._values += 1
        if depth > MAX_DEPTH or self._values > MAX_VALUES:
            raise UnsafeFileError("its pickle is nested too deeply or holds too many values for an embedding.")
        if isinstance(value, TensorSpec):
            return self._tensor(value)
        if isinstance(value, ModuleState):
            parameters = value.state.get("_parameters")
            return Parameters(self.build(parameters if isinstance(parameters, dict) else {}, depth + 1))
        if isinstance(value, dict):
            return {key: self.build(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.build(item, depth + 1) for item in value]
        return value if isinstance(value, (str, int, float, bytes, bool)) else None

    def _tensor(self, spec: TensorSpec) -> StoredTensor:
        size, stride, dtype = spec.size, spec.stride, spec.storage.dtype
        inside = len(size) == len(stride) <= MAX_DEPTH and spec.offset >= 0
        if not inside or min(size, default=1) < 1 or not all(0 <= step <= MAX_ELEMENTS for step in stride):
            raise UnsafeFileError(f"its pickle describes an impossible tensor (shape {list(size[:4])}, stride {list(stride[:4])}).")
        self._elements += _product(size)
        if self._elements > MAX_ELEMENTS:
            raise UnsafeFileError(f"its pickle claims tensors of more than {MAX_ELEMENTS} elements, such as one of shape {list(size[:4])}.")
        last = spec.offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        storage = self._storage(spec.storage)
        if last >= spec.storage.numel:
            raise UnsafeFileError(f"its pickle describes a tensor of shape {list(size)} that reaches beyond its data.")
        part = storage[spec.offset * element_size(dtype) : (last + 1) * element_size(dtype)]  # a table may be saved for one row of it

        def read() -> torch.Tensor:
            import torch

            flat = tensor_from(part, dtype, (last + 1 - spec.offset,))
            return flat.as_strided(size, stride).clone(memory_format=torch.contiguous_format)

        return StoredTensor(size, dtype, read)

    def _storage(self, spec: StorageSpec) -> memoryview:
        data = self._storages.get(spec.key) if spec.inline is None else memoryview(spec.inline)
        if data is None or spec.numel < 1 or len(data) != spec.numel * element_size(spec.dtype):
            found = "none" if data is None else f"{len(data)} bytes"
            raise EmbeddingError(f"its tensor data {spec.key[:20]!r} should be {spec.numel} elements but is {found}: a damaged file.")
        return data


def _product(size: tuple[int, ...]) -> int:
    """Elements of `size`, no longer exact once it is beyond what is accepted."""
    total = 1
    for length in size:
        total = min(total * length, MAX_ELEMENTS + 1)
    return total
