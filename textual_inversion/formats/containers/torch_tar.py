"""Reads the oldest form of PyTorch files, a tar of three parts, as plain data and tensors. Runs nothing in them.

`storages` holds the raw data, `tensors` the views of it, `pickle` the object that refers to them by number.
Format: `legacy_load` in https://github.com/pytorch/pytorch/blob/main/torch/serialization.py
"""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.file_bytes import FileBytes
from textual_inversion.formats.containers.pickle_tags import Import, StorageSpec, TensorSpec
from textual_inversion.formats.containers.tensors import ELEMENT_SIZES
from textual_inversion.formats.containers.torch_file import MAX_DEPTH, Data, Part, TorchLimits, build_tree, part_of
from textual_inversion.formats.containers.unpickler import walk_pickle

_MAGIC_PLACE, _MAGIC = 257, b"ustar"
_PARTS = ("storages", "tensors", "pickle")
_MOST_MEMBERS = 20
_MOST_TENSORS = 100_000
_DAMAGED = "its tensor data is damaged, or PyTorch did not write it."
_TYPES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte")


class _Data(NamedTuple):
    """A storage or a part of one: the whole, and where the part begins in it, in elements."""

    storage: StorageSpec
    begin: int


def is_torch_tar(source: FileBytes | Data) -> bool:
    """Whether the file is a tar."""
    end = _MAGIC_PLACE + len(_MAGIC)
    head = source.read(_MAGIC_PLACE, end) if isinstance(source, FileBytes) else source[_MAGIC_PLACE:end]
    return head == _MAGIC


def read_torch_tar(data: Data, limits: TorchLimits) -> Any:
    """Read the bytes of such a file, which may be mapped into memory.

    Raises:
        UnsafeFileError: the file contains or hides more than data.
        EmbeddingError: the file is damaged or too large.
    """
    parts = {name: _Window(data, *place) for name, place in _members(data).items()}
    if missing := [name for name in _PARTS if name not in parts]:
        raise EmbeddingError(f"it is a tar file without {missing[0]}, so PyTorch did not write it.")
    limits = replace(limits, rules=replace(limits.rules, allowed={**limits.rules.allowed, **_tensor_classes()}))
    try:
        raw, known = _read_storages(parts["storages"], limits)
        tensors = _read_tensors(parts["tensors"], known, limits)
    except (struct.error, ValueError, KeyError, TypeError, OverflowError) as error:
        raise EmbeddingError(_DAMAGED) from error
    tree = walk_pickle(parts["pickle"], rules=replace(limits.rules, persistent=_finder(tensors)))
    return build_tree(tree, raw, limits)


class _Window:
    """The bytes of one member, as a stream."""

    def __init__(self, data: Data, begin: int, end: int) -> None:
        self._data, self._place, self._end = data, begin, end

    def read(self, size: int) -> bytes:
        """The next bytes."""
        begin, self._place = self._place, min(self._end, self._place + max(0, size))
        return self._data[begin : self._place]

    def readline(self, limit: int) -> bytes:
        """The bytes up to the next newline."""
        line = self._data[self._place : min(self._end, self._place + limit)].partition(b"\n")
        return self.read(len(line[0]) + len(line[1]))

    def tell(self) -> int:
        """The place of the next byte."""
        return self._place

    def take(self, size: int) -> Part:
        """The next bytes without a copy; raises `ValueError` where they are not there."""
        if not 0 <= size <= self._end - self._place:
            raise ValueError("data beyond the end")
        begin, self._place = self._place, self._place + size
        return part_of(self._data, begin, self._place)

    def numbers(self, form: str) -> tuple[int, ...]:
        """The next numbers, little-endian."""
        return struct.unpack(f"<{form}", self.read(struct.calcsize(f"<{form}")))


def _members(data: Data) -> dict[str, tuple[int, int]]:
    """Name of each plain member -> where its bytes begin and end."""
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(fileobj=cast(Any, _Seekable(data)), mode="r:") as tar:
            for count, member in enumerate(tar):
                if count > _MOST_MEMBERS or member.name in places or not member.isreg():
                    raise EmbeddingError("it is a tar file with other members than PyTorch writes.")
                places[member.name] = (member.offset_data, member.offset_data + member.size)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise EmbeddingError("it begins as a tar file but is cut off or damaged.") from error
    return places


class _Seekable(_Window):
    """All bytes of the file, for the reader of tars."""

    def __init__(self, data: Data) -> None:
        super().__init__(data, 0, len(data))

    def seek(self, place: int) -> None:
        """Go to a place."""
        self._place = place


def _tensor_classes() -> dict[str, Import]:
    return {f"torch.{name}Tensor": Import("opaque") for name in _TYPES}


def _read_storages(stream: _Window, limits: TorchLimits) -> tuple[dict[str, Part], dict[int, _Data]]:
    """The raw data by key, and all storages and parts of storages by number."""
    raw: dict[str, Part] = {}
    known: dict[int, _Data] = {}
    for _ in range(_count(stream, limits)):
        number, _location, tag = walk_pickle(stream, rules=limits.rules)
        if not isinstance(tag, Import) or tag.kind != "storage" or tag.dtype is None or type(number) is not int:
            raise ValueError("a storage of no type")
        (count,) = stream.numbers("q")
        raw[str(number)] = stream.take(count * ELEMENT_SIZES[tag.dtype])
        known[number] = _Data(StorageSpec(tag.dtype, str(number), count), 0)
    for target, root, offset, _size in walk_pickle(stream, rules=limits.rules):
        if type(offset) is not int or offset < 0:
            raise ValueError("a part that begins before its storage")
        known[target] = _Data(known[root].storage, known[root].begin + offset)
    return raw, known


def _read_tensors(stream: _Window, known: dict[int, _Data], limits: TorchLimits) -> dict[int, TensorSpec]:
    """The views of the storages, by number."""
    tensors: dict[int, TensorSpec] = {}
    for _ in range(_count(stream, limits)):
        number, storage, _class = walk_pickle(stream, rules=limits.rules)
        (axes, _unused) = stream.numbers("ii")
        if not 0 <= axes <= MAX_DEPTH:
            raise ValueError("a tensor of too many axes")
        size, stride, (offset,) = stream.numbers(f"{axes}q"), stream.numbers(f"{axes}q"), stream.numbers("q")
        whole, begin = known[storage]
        tensors[number] = TensorSpec(whole, begin + offset, size, stride)
    return tensors


def _count(stream: _Window, limits: TorchLimits) -> int:
    count = walk_pickle(stream, rules=limits.rules)
    if type(count) is not int or not 0 <= count <= _MOST_TENSORS:
        raise ValueError("no count")
    return count


def _finder(tensors: dict[int, TensorSpec]) -> Callable[[Any], Any]:
    """What the pickle refers to: a tensor by its number, as text or not, or a class with its source."""

    def find(pid: Any) -> Any:
        if isinstance(pid, tuple) and pid and isinstance(pid[0], Import):
            return pid[0]
        spec = tensors.get(int(pid)) if isinstance(pid, (str, int)) and str(pid)[:20].lstrip("-").isdigit() else None
        if spec is None:
            raise EmbeddingError(_DAMAGED)
        return spec

    return find
