"""PyTorch's zip files as entries and their bytes. Runs nothing; knows nothing of pickles or embeddings.

Readers of zips differ in many ways: which of two lists of entries they go by, where they look for it, whose name of an entry counts.
A file that is harmless here must be so to PyTorch too, so whatever a file tells twice must be told alike, and what PyTorch never
writes is refused. Python's own reader would also take any number of entries into memory before one could count them.
The format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

from textual_inversion.errors import EmbeddingError, UnsafeFileError

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


class _Entry(NamedTuple):
    """An entry as the list at the end tells it: its name as it is spelt there, checksum, size, and where its own header begins."""

    raw_name: bytes
    name: str
    flags: int
    checksum: int
    size: int
    begin: int


def read_zip(data: bytes) -> dict[str, memoryview]:
    """Entry -> its bytes within `data`, the archive's folder left off.

    Raises:
        UnsafeFileError: a zip that two readers could see differently, or with entries that PyTorch does not write.
        EmbeddingError: cut off or damaged.
    """
    try:
        entries = sorted(_listed(data), key=lambda entry: entry.begin)
        _check_names([entry.name for entry in entries])
        return _slice(memoryview(data), entries)
    except (struct.error, ValueError) as error:
        raise EmbeddingError(_DAMAGED) from error


def _find_list(data: bytes) -> tuple[int, int, int]:
    """Where the list of entries begins and ends, and how many it has."""
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
        told = (_END64, _END64_PART.size - 12, *larger[2:4], disk, other_disk, here, count, size, begin)
        if larger != told or located != (_LOCATOR, 0, end, 1):
            raise UnsafeFileError(f"its zip tells in two ways where its list of entries is, {_TWO_WAYS}")
    else:
        end = place
    if disk or other_disk or here != count or begin + size != end:
        raise UnsafeFileError(f"its zip has other data before or after it, or its list of entries is elsewhere than it says, {_TWO_WAYS}")
    if count > MAX_ENTRIES:
        raise UnsafeFileError(f"its zip has {count} entries; an embedding has a few.")
    return begin, end, count


def _listed(data: bytes) -> list[_Entry]:
    """The entries of the list at the end, which must fill its place."""
    begin, end, count = _find_list(data)
    found = []
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
        found.append(_Entry(raw_name, name, flags, checksum, size, place))
        begin += _LIST_PART.size + named
    if begin != end:
        raise UnsafeFileError(f"its zip has a longer list of entries than it says, {_TWO_WAYS}")
    return found


def _check_names(names: list[str]) -> None:
    if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) > 1:
        raise UnsafeFileError(f"its zip holds an entry twice or several folders, {_TWO_WAYS}")
    if unknown := [name for name in names if not _NAME.fullmatch(name)]:
        raise UnsafeFileError(f"its zip holds {unknown[0][:60]!r}, which PyTorch does not write.")


def _slice(data: memoryview, entries: list[_Entry]) -> dict[str, memoryview]:
    """The entries without a copy; they lie in the order of the file, and their own headers say what the list says."""
    found: dict[str, memoryview] = {}
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
        if flags & _ENCRYPTED or zlib.crc32(data[begin:end]) != entry.checksum:
            raise ValueError("encrypted or damaged")
        found[entry.name.partition("/")[2]] = data[begin:end]
        free = end
    return found
