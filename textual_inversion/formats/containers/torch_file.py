"""Reads PyTorch's two file formats, zip and legacy stream, as plain data and tensors. Runs nothing in them.

Zip readers differ. Some use the central directory at the end (here: the list), some use the local headers of the entries. They search
for the list in different places, and choose differently between two entries of the same name. A file that is harmless here must be
harmless in PyTorch too. So the list and the local headers must agree, and everything that PyTorch never writes is refused. Python's
zipfile is not used, because it loads any number of entries into memory before they can be counted.
Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from textual_inversion.errors import EmbeddingError, UnsafeFileError
from textual_inversion.formats.containers.file_bytes import MAX_READ_BYTES, FileBytes
from textual_inversion.formats.containers.pickle_tags import ModuleState, StorageSpec, TensorSpec
from textual_inversion.formats.containers.tensors import ELEMENT_SIZES, Contents, Parameters, StoredTensor, tensor_from
from textual_inversion.formats.containers.unpickler import EMBEDDING_RULES, PickleRules, walk_pickle

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
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # a number too large for its place, which follows in a place of 64 bits
_ZIP64 = struct.Struct("<HH")  # signature 1 and length of an extra field with such numbers
_DAMAGED = "it begins as a zip file but is cut off or damaged."
_TWO_WAYS = "so programs could read different things from it."


@dataclass(frozen=True)
class TorchLimits:
    """What a PyTorch file may hold; the defaults are for embeddings.

    Attributes:
        pickle_bytes: size of its pickle.
        entries: entries of its zip.
        elements: numbers in all tensors together, and in a tensor that repeats the numbers of its data.
        values: values of its pickle.
        depth: how deeply they are nested.
        rules: what its pickle may hold.
        checks_sums: whether the sums of all data are checked, for which the whole file must be read.
        allows_empty: whether a tensor may have no elements.
    """

    pickle_bytes: int = MAX_PICKLE_BYTES
    entries: int = MAX_ENTRIES
    elements: int = MAX_ELEMENTS
    values: int = MAX_VALUES
    depth: int = MAX_DEPTH
    rules: PickleRules = EMBEDDING_RULES
    checks_sums: bool = True
    allows_empty: bool = False


EMBEDDING_LIMITS = TorchLimits()


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


Data = bytes | mmap.mmap | _FilePart
Part = memoryview | _FilePart


def part_of(data: Data, begin: int, end: int) -> Part:
    """The bytes of a file from `begin` up to `end`, not copied."""
    return data.part(begin, end) if isinstance(data, _FilePart) else memoryview(data)[begin:end]


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
    if source.size <= MAX_READ_BYTES:
        return Contents("pickle", read_torch_data(source.all(), EMBEDDING_LIMITS))
    try:  # a vector may be a row of a whole token table, of which only that row is read
        return Contents("pickle", read_torch_data(_FilePart(source, 0, source.size), EMBEDDING_LIMITS))
    except _TooMuchError as error:
        size = source.size // 2**20
        raise EmbeddingError(f"it has {size} MB and more in it than an embedding has, so this may be a LoRA or a checkpoint.") from error


def read_torch_data(data: Data, limits: TorchLimits) -> Any:
    """Read the bytes of a file of `torch.save`, which may be mapped into memory, as plain data with `StoredTensor`s that lie in them.

    Raises:
        UnsafeFileError: the file contains or hides more than data.
        EmbeddingError: the file is damaged or too large.
    """
    return _read_zip(data, limits) if data[: len(ZIP_START)] == ZIP_START else _read_legacy(data, limits)


def _read_zip(data: Data, limits: TorchLimits) -> Any:
    """The plain data of the zip's pickle, with its tensors."""
    entries = read_zip(data, limits)
    if "data.pkl" not in entries:
        raise EmbeddingError("it is a zip file without data.pkl, so PyTorch did not write it.")
    if len(entries["data.pkl"]) > limits.pickle_bytes:
        raise EmbeddingError(f"its pickle has {len(entries['data.pkl'])} bytes; at most {limits.pickle_bytes} are read.")
    if "byteorder" in entries and bytes(entries["byteorder"][:]) != b"little":
        raise EmbeddingError("it was written on a big-endian machine; convert it there to safetensors.")
    tree = walk_pickle(BytesIO(entries["data.pkl"][:]), rules=limits.rules)
    return build_tree(tree, {key.removeprefix("data/"): part for key, part in entries.items()}, limits)


def _read_legacy(data: Data, limits: TorchLimits) -> Any:
    """Read five pickles (magic, protocol, system, object, storage keys), then the element count and raw data for each key."""
    stream = BytesIO(data[: limits.pickle_bytes])
    if walk_pickle(stream) != _LEGACY_MAGIC or walk_pickle(stream) != _LEGACY_PROTOCOL:
        raise EmbeddingError("it is a pickle, but not one that PyTorch wrote.")
    system = walk_pickle(stream)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise EmbeddingError("it was written on a big-endian machine; convert it there to safetensors.")
    specs: list[StorageSpec] = []
    tree, keys = walk_pickle(stream, specs, limits.rules), walk_pickle(stream, rules=limits.rules)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise EmbeddingError("its list of tensor data is damaged.")
    by_key = {spec.key: spec for spec in specs}
    place = stream.tell()
    storages: dict[str, Part] = {}
    for key in keys:
        spec, count = by_key.get(key), data[place : place + 8]
        if spec is None or len(count) < 8 or struct.unpack("<q", count)[0] != spec.numel:
            raise EmbeddingError("its tensor data does not match its pickle; the file is cut off or damaged.")
        end = place + 8 + max(spec.numel, 0) * ELEMENT_SIZES[spec.dtype]
        storages[key], place = part_of(data, place + 8, end), end
    if place < len(data):
        raise UnsafeFileError("other data follows after its tensors.")
    return build_tree(tree, storages, limits)


def build_tree(value: Any, storages: Mapping[str, Part], limits: TorchLimits) -> Any:
    """Turn a value of `walk_pickle` into plain data with `StoredTensor`s, whose numbers lie in `storages`, by key.

    Raises:
        UnsafeFileError: it claims more than the limits, or than its data.
        EmbeddingError: data is missing.
    """
    return _Builder(storages, limits).build(value)


class _Builder:
    """Turns the result of `walk_pickle` into plain data, and checks every tensor against its storage."""

    def __init__(self, storages: Mapping[str, Part], limits: TorchLimits) -> None:
        self._storages = storages
        self._limits = limits
        self._elements = 0
        self._values = 0

    def build(self, value: Any, depth: int = 0) -> Any:
        """Convert `value` to plain data. Depth and size are limited, because a pickle's lists may contain themselves."""
        self._values += 1
        if depth > self._limits.depth or self._values > self._limits.values:
            raise _TooMuchError("its pickle is nested too deeply or holds too many values.")
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
        most = self._limits.elements
        inside = len(size) == len(stride) <= MAX_DEPTH and spec.offset >= 0
        if self._limits.allows_empty and inside and min(size, default=1) == 0:
            return _empty(size, dtype)
        if not inside or min(size, default=1) < 1 or not all(0 <= step <= most for step in stride):
            raise UnsafeFileError(f"its pickle describes an impossible tensor (shape {list(size[:4])}, stride {list(stride[:4])}).")
        count = 1
        for length in size:
            count = min(count * length, most + 1)  # capped, so the number stays small
        self._elements += count
        if self._elements > most or count > max(MAX_ELEMENTS, spec.storage.numel):
            raise _TooMuchError(f"its pickle claims tensors of more than {most} elements, such as one of shape {list(size[:4])}.")
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

    def _storage(self, spec: StorageSpec) -> Part:
        data = self._storages.get(spec.key) if spec.inline is None else memoryview(spec.inline)
        if data is None or spec.numel < 1 or len(data) != spec.numel * ELEMENT_SIZES[spec.dtype]:
            size = "none" if data is None else f"{len(data)} bytes"
            raise EmbeddingError(f"its tensor data {spec.key[:20]!r} should be {spec.numel} elements but is {size}: a damaged file.")
        return data


def _empty(size: tuple[int, ...], dtype: str) -> StoredTensor:
    """A tensor without elements; it needs no data."""
    return StoredTensor(size, dtype, lambda: tensor_from(b"", dtype, (0,)).reshape(size))


class _Entry(NamedTuple):
    """An entry of the list: its name in the original bytes, checksum, size, and the offset of its local header."""

    raw_name: bytes
    name: str
    flags: int
    checksum: int
    size: int
    begin: int


def read_zip(data: Data, limits: TorchLimits = EMBEDDING_LIMITS) -> dict[str, Part]:
    """Return entry name, without the archive's folder -> its bytes within `data`.

    Raises:
        UnsafeFileError: two zip readers could see different contents, or the zip has entries that PyTorch does not write.
        EmbeddingError: the zip is cut off or damaged.
    """
    try:
        entries = sorted(_read_list(data, limits.entries), key=lambda entry: entry.begin)
        names = [entry.name for entry in entries]
        if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) > 1:
            raise UnsafeFileError(f"its zip holds an entry twice or several folders, {_TWO_WAYS}")
        if unknown := [name for name in names if not _NAME.fullmatch(name)]:
            raise UnsafeFileError(f"its zip holds {unknown[0][:60]!r}, which PyTorch does not write; if it is an archive, unpack it.")
        return _slice(data, entries, limits)
    except (struct.error, ValueError) as error:
        raise EmbeddingError(_DAMAGED) from error


def _find_list(data: Data, most_entries: int) -> tuple[int, int, int]:
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
        # each number of the part for large files says the same as the one of the end, or takes the place of one that is too large
        numbers, full = (here, count, size, begin), (_FULL16, _FULL16, _FULL32, _FULL32)
        here, count, size, begin = (b if a == most and b >= most else a for a, b, most in zip(numbers, larger[6:], full))
        expected = (_END64, _END64_PART.size - 12, *larger[2:4], disk, other_disk, here, count, size, begin)
        if larger != expected or located != (_LOCATOR, 0, end, 1):
            raise UnsafeFileError(f"its zip tells in two ways where its list of entries is, {_TWO_WAYS}")
    else:
        end = place
    if disk or other_disk or here != count or begin + size != end:
        raise UnsafeFileError(f"its zip has other data before or after it, or its list of entries is elsewhere than it says, {_TWO_WAYS}")
    if count > most_entries:
        raise _TooMuchError(f"its zip has {count} entries; at most {most_entries} are read.")
    return begin, end, count


def _read_list(data: Data, most: int) -> list[_Entry]:
    """Read the entries of the list; they must fill it exactly."""
    begin, end, count = _find_list(data, most)
    entries = []
    for _ in range(count):
        part = data[begin : begin + _LIST_PART.size]
        signature, flags, method, checksum, packed, size, named, extra, comment, disk, place = _LIST_PART.unpack(part)
        raw_name = data[begin + _LIST_PART.size : begin + _LIST_PART.size + named]
        name = raw_name.decode("utf-8" if flags & _UTF8 else "cp437")
        if signature != _LIST_ENTRY or flags & _ENCRYPTED:
            raise ValueError("no entry, or an encrypted one")
        begin += _LIST_PART.size + named
        size, packed, place, extra = _large_numbers(data[begin : begin + extra], (size, packed, place))
        if method or packed != size:
            raise UnsafeFileError(f"its zip entry {name[:60]!r} is compressed, which PyTorch never does.")
        if extra < 0 or comment or disk:
            raise UnsafeFileError(f"its zip tells more of {name[:60]!r} than PyTorch writes, {_TWO_WAYS}")
        entries.append(_Entry(raw_name, name, flags, checksum, size, place))
        begin += extra
    if begin != end:
        raise UnsafeFileError(f"its zip has a longer list of entries than it says, {_TWO_WAYS}")
    return entries


def _large_numbers(extra: bytes, numbers: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Sizes and place of an entry from 4 GB on, and the length of the extra field that holds them; -1 = it holds something else."""
    large = [index for index, number in enumerate(numbers) if number == _FULL32]
    if not extra:
        return (*numbers, 0)
    if not large or len(extra) != _ZIP64.size + 8 * len(large) or _ZIP64.unpack_from(extra) != (1, 8 * len(large)):
        return (*numbers, -1)
    values = dict(zip(large, struct.unpack_from(f"<{len(large)}Q", extra, _ZIP64.size)))
    size, packed, place = (values.get(index, number) for index, number in enumerate(numbers))
    return size, packed, place, len(extra)


def _checked(data: Data, entry: _Entry, begin: int, end: int, *, reads_later: bool) -> Part:
    """The bytes of an entry, whose checksum is right; those of a large file may be checked when they are read."""
    if isinstance(data, _FilePart) and reads_later:
        return data.part(begin, end, entry.checksum)
    if entry.size > MAX_READ_BYTES or zlib.crc32(data[begin:end]) != entry.checksum:
        raise ValueError("damaged")
    return part_of(data, begin, end)


def _slice(data: Data, entries: list[_Entry], limits: TorchLimits) -> dict[str, Part]:
    """Cut out the entries without copying. They must follow each other in the file, and their local headers must agree with the list."""
    parts: dict[str, Part] = {}
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
        parts[name] = (
            _checked(data, entry, begin, end, reads_later=name.startswith("data/")) if limits.checks_sums else part_of(data, begin, end)
        )
        free = end
    return parts
