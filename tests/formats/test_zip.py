"""Zips that tell two things: whatever PyTorch could see in a file, the reader here sees it too or refuses the file."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import pytest
import torch

from textual_inversion.errors import EmbeddingError, UnsafeFileError
from textual_inversion.formats import describe
from textual_inversion.formats.containers.torch_file import read_zip

HONEST, OTHER = pickle.dumps({"seen": "honest"}, 2), pickle.dumps({"seen": "other"}, 2)
VERSION = b"3\n"


def _own(name: bytes, data: bytes) -> bytes:
    return struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), 0) + name + data


def _listed(name: bytes, data: bytes, place: int, extra: bytes = b"", comment: bytes = b"") -> bytes:
    sizes = (zlib.crc32(data), len(data), len(data), len(name), len(extra), len(comment))
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, *sizes, 0, 0, 0, place) + name + extra + comment


def _end64(count: int, size: int, place: int) -> bytes:
    return struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, place)


def _locator(place: int) -> bytes:
    return struct.pack("<4sIQI", b"PK\6\7", 0, place, 1)


def _end(count: int, size: int, place: int) -> bytes:
    return struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, place, 0)


def _two_lists() -> bytes:
    """PyTorch goes to the list that the locator leads to, Python's zipfile to the last one."""
    body = _own(b"x/version", VERSION)
    honest = len(body)
    body += _own(b"x/data.pkl", HONEST)
    other = len(body)
    body += _own(b"x/data.pkl", OTHER)
    begin = len(body)
    hidden = _listed(b"x/version", VERSION, 0) + _listed(b"x/data.pkl", OTHER, other)
    body += hidden
    hidden_end = len(body)
    body += _end64(2, len(hidden), begin)
    begin = len(body)
    shown = _listed(b"x/version", VERSION, 0) + _listed(b"x/data.pkl", HONEST, honest)
    return body + shown + _end64(2, len(shown), begin) + _locator(hidden_end) + _end(2, len(shown), begin)


def _plain(extra: bytes = b"", comment: bytes = b"", count: int = 2, shift: int = 0, gap: bytes = b"") -> bytes:
    body = _own(b"x/version", VERSION)
    place = len(body)
    body += _own(b"x/data.pkl", HONEST)
    entries = _listed(b"x/version", VERSION, 0) + _listed(b"x/data.pkl", HONEST, place, extra, comment)
    return body + gap + entries + _end(count, len(entries), len(body) + len(gap) + shift)


def test_pytorch_and_python_see_two_things_in_such_a_file(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(_two_lists())
    assert torch.load(path, weights_only=True) == {"seen": "other"}
    with zipfile.ZipFile(path) as archive:
        assert pickle.loads(archive.read("x/data.pkl")) == {"seen": "honest"}
    with pytest.raises(UnsafeFileError, match="two ways"):
        describe(path)


def test_a_plain_one_is_read():
    entries = read_zip(_plain())
    assert {name: bytes(data) for name, data in entries.items()} == {"version": VERSION, "data.pkl": HONEST}


@pytest.mark.parametrize(
    "data",
    [
        _plain(extra=struct.pack("<HHBI", 0x7075, 14, 1, zlib.crc32(b"x/data.pkl")) + b"x/version"),  # another name, in Unicode
        _plain(comment=b"a comment"),
        _plain(count=1),
        _plain(shift=4),
        _plain(shift=-4),
        _plain()[:-2] + b"\x04\x00more",
        _plain() + _plain(),
        _plain().replace(b"x/version", b"y/version"),
        _plain().replace(b"x/version", b"x\0version"),
    ],
    ids=["unicode name", "comment of an entry", "fewer", "later", "earlier", "comment", "two", "two folders", "zero byte"],
)
def test_what_could_be_read_in_two_ways_is_unsafe(data):
    with pytest.raises(UnsafeFileError):
        read_zip(data)


def test_a_list_of_a_million_entries_is_counted_not_kept():
    entry = _listed(b"a", b"", 0)
    many = entry * (2**16 - 1)
    with pytest.raises(UnsafeFileError, match="65535 entries"):
        read_zip(_own(b"a", b"") + many + _end(2**16 - 1, len(many), 31))
    with pytest.raises(UnsafeFileError, match="longer list"):
        read_zip(_own(b"a", b"") + many + _end(1, len(many), 31))


def test_every_cut_and_changed_byte_is_refused_or_reads_the_same():
    buffer = BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    data = buffer.getvalue()
    whole = {name: bytes(part) for name, part in read_zip(data).items()}
    for length in range(4, len(data)):
        with pytest.raises(EmbeddingError):
            read_zip(data[:length])
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :]
        try:
            found = {name: bytes(part) for name, part in read_zip(changed).items()}
        except EmbeddingError:
            continue
        assert found == whole or len(found) == len(whole)  # a name may change, checksums hold the bytes
        assert sorted(found.values()) == sorted(whole.values())


def test_what_pytorch_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        assert read_zip(path.read_bytes()) == {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
