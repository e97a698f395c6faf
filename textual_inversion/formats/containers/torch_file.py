"""Reads PyTorch's two file formats, zip and legacy stream, as plain data and tensors. Runs nothing in them.

Zip readers differ. Some use the central directory at the end (here: the list), some use the local headers of the entries. They search
for the list in different places, and choose differently between two entries of the same name. A file that is harmless here must be
harmless in PyTorch too. So the list and the local headers must agree, and everything that PyTorch never writes is refused. Python's
zipfile is not used, because it loads any number of entries into memory before they can be counted.
Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from textual_inversion.errors import EmbeddingError, UnsafeFileError
from textual_inversion.formats.containers.file_bytes import MAX_READ_BYTES, FileBytes
from textual_inversion.formats.containers.pickle_tags import ModuleState, StorageSpec, TensorSpec
from textual_inversion.formats.containers.tensors import ELEMENT_SIZES, Contents, Parameters, StoredTensor, tensor_from
from textual_inversion.formats.containers.unpickler import walk_pickle

if TYPE_CHECKING:
    import torch

MAX_PICKLE_BYTES = 4 * 2**20
MAX_ELEMENTS = 2**24  # of all tensors together; with a stride of 0, a few bytes can claim any size
MAX_VALUES = 50_000
MAX_DEPTH = 8
_BLOCK = 2**20  # bytes of a large file read at a time
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
ZIP_START = b"PK\x03\x04"
MAX_ENTRIES = 2_000
_LIST_ENTRY, _END, _END64, _LOCATOR = b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_PART = struct.Struct("<4s4H2IH")  # signature, two disks, entries here and in all, size and place of the list, length of a comment
_END64_PART = struct.Struct("<4sQ2H2I4Q")  # signature, size of the rest, versions, two disks, entries here and in all, size, place
_LOCATOR_PART = struct.Struct("<4sIQI")  # signature, disk, place of the part above, disks
#: Signature, flags, compression, checksum, both sizes, lengths of the name, the extra field and the comment, disk, place.
_LIST_PART = struct.Struct("<4s4xHH4x3I4H6xI")
_OWN_PART = struct.Struct("<4s2xHH16xHH")  # signature, flags, compression, length of the name and of the extra field
_NAME = re.compile(r"[^/\0]+/(data\.pkl|data/\w+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)")
_ENCRYPTED, _UTF8 = 1, 0x800
_DAMAGED = "it begins as a zip file but is cut off or damaged."
_TWO_WAYS = "so programs could read different things from it."


def is_torch_file(source: FileBytes) -> bool:
    """Whether the file begins like a zip or like a binary pickle."""
    head = source.read(0, 4)
    return head == ZIP_START or head[:1] == b"\x80"


def read_torch_file(source: FileBytes) -> Contents:
    """Read a file of `torch.save` in either format. Tensors are checked against their data but not built yet.

    Raises:
        UnsafeFileError: the file contains or hides more than data.
        EmbeddingError: the file is damaged or too large.
    """
    is_zip = source.read(0, 4) == ZIP_START
    if source.size <= MAX_READ_BYTES:
        data = source.all()
        return Contents("pickle", _read_zip(data) if is_zip else _read_legacy(data))
    try:  # a vector may be a row of a whole token table, of which only that row is read
        large = _FilePart(source, 0, source.size)
        return Contents("pickle", _read_zip(large) if is_zip else _read_legacy(large))
    except _TooMuchError as error:
        size = source.size // 2**20
        raise EmbeddingError(f"it has {size} MB and more in it than an embedding has, so this may be a LoRA or a checkpoint.") from error


class _TooMuchError(UnsafeFileError):
    """More entries, values or elements than an embedding has."""


class _FilePart:
    """Bytes of a large file that are read when they are asked for.

    Args:
        checksum: of all of these bytes; None where it is checked already, or there is none.
    """

    def __init__(self, source: FileBytes, begin: int, end: int, checksum: int | None = None) -> None:
        self._source, self._begin, self._end, self._checksum = source, begin, max(begin, min(end, source.size)), checksum

    def __len__(self) -> int:
        return self._end - self._begin

    def __getitem__(self, place: slice) -> bytes:
        begin, end, _ = place.indices(len(self))
        return self._source.read(self._begin + begin, self._begin + max(begin, end))

    def part(self, begin: int, end: int, checksum: int | None = None) -> _FilePart:
        """The bytes from `begin` up to `end`, not read yet."""
        return _FilePart(self._source, self._begin + begin, self._begin + end, checksum)

    def check(self) -> None:
        """Read all of it once and compare its checksum; raises `EmbeddingError`."""
        if self._checksum is None:
            return
        found = 0
        for begin in range(0, len(self), _BLOCK):
            found = zlib.crc32(self[begin : begin + _BLOCK], found)
        if found != self._checksum:
            raise EmbeddingError(_DAMAGED)
        self._checksum = None


_Data = bytes | _FilePart
_Part = memoryview | _FilePart


def _part_of(data: _Data, begin: int, end: int) -> _Part:
    return data.part(begin, end) if isinstance(data, _FilePart) else memoryview(data)[begin:end]


def _read_zip(data: _Data) -> Any:
    """The plain data of the zip's pickle, with its tensors."""
    entries = read_zip(data)
    if "data.pkl" not in entries:
        raise EmbeddingError("it is a zip file without data.pkl, so PyTorch did not write it.")
    if len(entries["data.pkl"]) > MAX_PICKLE_BYTES:
        raise EmbeddingError(f"its pickle has {len(entries['data.pkl'])} bytes; an embedding's has a few thousand.")
    if "byteorder" in entries and bytes(entries["byteorder"][:]) != b"little":
        raise EmbeddingError("it was written on a big-endian machine; convert it there to safetensors.")
    tree = walk_pickle(BytesIO(entries["data.pkl"][:]))
    return _Builder({key.removeprefix("data/"): part for key, part in entries.items()}).build(tree)


def _read_legacy(data: _Data) -> Any:
    """Read five pickles (magic, protocol, system, object, storage keys), then the element count and raw data for each key."""
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
    by_key = {spec.key: spec for spec in specs}
    place = stream.tell()
    storages: dict[str, _Part] = {}
    for key in keys:
        spec, count = by_key.get(key), data[place : place + 8]
        if spec is None or len(count) < 8 or struct.unpack("<q", count)[0] != spec.numel:
            raise EmbeddingError("its tensor data does not match its pickle; the file is cut off or damaged.")
        end = place + 8 + max(spec.numel, 0) * ELEMENT_SIZES[spec.dtype]
        storages[key], place = _part_of(data, place + 8, end), end
    if place < len(data):
        raise UnsafeFileError("other data follows after its tensors.")
    return _Builder(storages).build(tree)


class _Builder:
    """Turns the result of `walk_pickle` into plain data, and checks every tensor against its storage."""

    def __init__(self, storages: Mapping[str, _Part]) -> None:
        self._storages = storages
        self._elements = 0
        self._values = 0

    def build(self, value: Any, depth: int = 0) -> Any:
        """Convert `value` to plain data. Depth and size are limited, because a pickle's lists may contain themselves."""
        self._values += 1
        if depth > MAX_DEPTH or self._values > MAX_VALUES:
            raise _TooMuchError("its pickle is nested too deeply or holds too many values for an embedding.")
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
        count = 1
        for length in size:
            count = min(count * length, MAX_ELEMENTS + 1)  # capped, so the number stays small
        self._elements += count
        if self._elements > MAX_ELEMENTS:
            raise _TooMuchError(f"its pickle claims tensors of more than {MAX_ELEMENTS} elements, such as one of shape {list(size[:4])}.")
        last = spec.offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        storage = self._storage(spec.storage)
        if last >= spec.storage.numel:
            raise UnsafeFileError(f"its pickle describes a tensor of shape {list(size)} that reaches beyond its data.")

        def read() -> torch.Tensor:
            import torch

            if isinstance(storage, _FilePart):
                storage.check()
            part = storage[spec.offset * ELEMENT_SIZES[dtype] : (last + 1) * ELEMENT_SIZES[dtype]]  # perhaps one row of a whole table
            flat = tensor_from(part, dtype, (last + 1 - spec.offset,))
            return flat.as_strided(size, stride).clone(memory_format=torch.contiguous_format)

        return StoredTensor(size, dtype, read)

    def _storage(self, spec: StorageSpec) -> _Part:
        data = self._storages.get(spec.key) if spec.inline is None else memoryview(spec.inline)
        if data is None or spec.numel < 1 or len(data) != spec.numel * ELEMENT_SIZES[spec.dtype]:
            size = "none" if data is None else f"{len(data)} bytes"
            raise EmbeddingError(f"its tensor data {spec.key[:20]!r} should be {spec.numel} elements but is {size}: a damaged file.")
        return data


class _Entry(NamedTuple):
    """An entry of the list: its name in the original bytes, checksum, size, and the offset of its local header."""

    raw_name: bytes
    name: str
    flags: int
    checksum: int
    size: int
    begin: int


def read_zip(data: _Data) -> dict[str, _Part]:
    """Return entry name, without the archive's folder -> its bytes within `data`; large ones in a large file are not read yet.

    Raises:
        UnsafeFileError: two zip readers could see different contents, or the zip has entries that PyTorch does not write.
        EmbeddingError: the zip is cut off or damaged.
    """
    try:
        entries = sorted(_read_list(data), key=lambda entry: entry.begin)
        names = [entry.name for entry in entries]
        if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) > 1:
            raise UnsafeFileError(f"its zip holds an entry twice or several folders, {_TWO_WAYS}")
        if unknown := [name for name in names if not _NAME.fullmatch(name)]:
            raise UnsafeFileError(f"its zip holds {unknown[0][:60]!r}, which PyTorch does not write; if it is an archive, unpack it.")
        return _slice(data, entries)
    except (struct.error, ValueError) as error:
        raise EmbeddingError(_DAMAGED) from error


def _find_list(data: _Data) -> tuple[int, int, int]:
    """Where the list begins and ends, and its number of entries."""
    place = len(data) - _END_PART.size
    signature, disk, other_disk, here, count, size, begin, comment = _END_PART.unpack(data[max(0, place) :])
    if signature != _END or comment:
        if _END in data[-_END_PART.size - 0xFFFF :]:
            raise UnsafeFileError("its zip has other data before or after it.")
        raise ValueError("no end")
    end = place - _LOCATOR_PART.size
    if data[end : end + 4] == _LOCATOR:
        end -= _END64_PART.size
        larger = _END64_PART.unpack(data[end : end + _END64_PART.size])
        located = _LOCATOR_PART.unpack(data[place - _LOCATOR_PART.size : place])
        expected = (_END64, _END64_PART.size - 12, *larger[2:4], disk, other_disk, here, count, size, begin)
        if larger != expected or located != (_LOCATOR, 0, end, 1):
            raise UnsafeFileError(f"its zip tells in two ways where its list of entries is, {_TWO_WAYS}")
    else:
        end = place
    if disk or other_disk or here != count or begin + size != end:
        raise UnsafeFileError(f"its zip has other data before or after it, or its list of entries is elsewhere than it says, {_TWO_WAYS}")
    if count > MAX_ENTRIES:
        raise _TooMuchError(f"its zip has {count} entries; an embedding has a few.")
    return begin, end, count


def _read_list(data: _Data) -> list[_Entry]:
    """Read the entries of the list; they must fill it exactly."""
    begin, end, count = _find_list(data)
    entries = []
    for _ in range(count):
        part = data[begin : begin + _LIST_PART.size]
        signature, flags, method, checksum, packed, size, named, extra, comment, disk, place = _LIST_PART.unpack(part)
        raw_name = data[begin + _LIST_PART.size : begin + _LIST_PART.size + named]
        name = raw_name.decode("utf-8" if flags & _UTF8 else "cp437")
        if signature != _LIST_ENTRY or flags & _ENCRYPTED:
            raise ValueError("no entry, or an encrypted one")
        if method or packed != size:
            raise UnsafeFileError(f"its zip entry {name[:60]!r} is compressed, which PyTorch never does.")
        if extra or comment or disk:
            raise UnsafeFileError(f"its zip tells more of {name[:60]!r} than PyTorch writes, {_TWO_WAYS}")
        entries.append(_Entry(raw_name, name, flags, checksum, size, place))
        begin += _LIST_PART.size + named
    if begin != end:
        raise UnsafeFileError(f"its zip has a longer list of entries than it says, {_TWO_WAYS}")
    return entries


def _slice(data: _Data, entries: list[_Entry]) -> dict[str, _Part]:
    """Cut out the entries without copying. They must follow each other in the file, and their local headers must agree with the list."""
    parts: dict[str, _Part] = {}
    free = 0
    for entry in entries:
        begin = entry.begin + _OWN_PART.size
        signature, flags, method, named, extra = _OWN_PART.unpack(data[entry.begin : begin])
        raw_name = bytes(data[begin : begin + named])
        begin += named + extra
        end = begin + entry.size
        if entry.begin < free or end > len(data):
            raise UnsafeFileError("its zip entries overlap.")
        if signature != ZIP_START or method or raw_name != entry.raw_name:
            raise UnsafeFileError(f"its zip describes {entry.name[:60]!r} in two ways, {_TWO_WAYS}")
        if flags & _ENCRYPTED:
            raise ValueError("encrypted")
        name = entry.name.partition("/")[2]
        if isinstance(data, _FilePart) and name.startswith("data/"):
            parts[name] = data.part(begin, end, entry.checksum)  # checked when it is read
        elif entry.size > MAX_READ_BYTES or zlib.crc32(data[begin:end]) != entry.checksum:
            raise ValueError("damaged")
        else:
            parts[name] = _part_of(data, begin, end)
        free = end
    return parts
