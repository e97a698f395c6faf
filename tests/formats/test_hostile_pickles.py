"""Pickles that want to run code, take memory or mislead another reader: each is one sentence, and nothing runs."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import pytest
import torch

from textual_inversion.errors import EmbeddingError, UnsafeFileError
from textual_inversion.formats import load
from textual_inversion.formats.containers.unpickler import walk_pickle


class _Runs:
    """Unpickling it with Python's own unpickler would make `target`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def _zip(pkl: bytes, storages: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("x/data.pkl", pkl)
        archive.writestr("x/version", "3\n")
        for key, data in (storages or {}).items():
            archive.writestr(f"x/data/{key}", data)
    return buffer.getvalue()


def _honest(zipped: bool = True) -> bytes:
    buffer = BytesIO()
    torch.save({"string_to_param": {"*": torch.ones(1, 8)}}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _legacy(tree: object, after: bytes = b"") -> bytes:
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, tree, [])
    return b"".join(pickle.dumps(part, protocol=2) for part in parts) + after


def _check_refused(tmp_path: Path, data: bytes, kind: type[EmbeddingError] = EmbeddingError) -> str:
    path = tmp_path / "bad.pt"
    path.write_bytes(data)
    with pytest.raises(kind) as error:
        load(path)
    assert error.value.path == path
    assert len(error.value.reason) < 600
    assert "\n" not in error.value.reason
    return error.value.reason


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_never_made(tmp_path, protocol):
    marker = tmp_path / "ran"
    attack = {"string_to_param": {"*": _Runs(marker)}}
    said = _check_refused(tmp_path, _zip(pickle.dumps(attack, protocol)), UnsafeFileError)
    assert "mkdir" in said
    _check_refused(tmp_path, _legacy(_Runs(marker)), UnsafeFileError)
    _check_refused(tmp_path, pickle.dumps(_Runs(marker), 2), UnsafeFileError)
    assert not marker.exists()


def test_a_legacy_stream_with_an_honest_zip_behind_it_is_refused(tmp_path):
    marker = tmp_path / "ran"
    _check_refused(tmp_path, _legacy(_Runs(marker), _honest()), UnsafeFileError)
    _check_refused(tmp_path, _honest(zipped=False) + _honest(), UnsafeFileError)
    assert not marker.exists()


@pytest.mark.parametrize(
    "pkl",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cposix\nsystem\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        b"(S'ls'\nios\nsystem\n.",  # INST
        b"\x82\x01.",  # EXT1, a registered class
        b"ccollections\nOrderedDict\n}S'a'\nS'b'\nsb.",  # BUILD on an import would change this program
        b"S'not a function'\n)R.",
        b"(ccollections\nOrderedDict\no.",  # OBJ
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x00\x00\x40.",  # a bytearray of 2**62 bytes
        b"Psomewhere\n.",
    ],
)
def test_everything_beyond_the_list_is_refused(tmp_path, pkl):
    _check_refused(tmp_path, _zip(pkl))


@pytest.mark.parametrize(
    "pkl",
    [
        b"",
        b"}",
        b".",
        b"(.",
        b"}}.",
        b"0.",
        b"1.",
        b"h\x00.",
        b"}(K\x01u.",
        b"}]K\x01s.",
        b"K\x01K\x02a.",
        b"\xff.",
        b"I" + b"9" * 5000 + b"\n.",
        b"\x8b" + struct.pack("<i", 3000) + b"\x7f" * 3000 + b".",
        b"X\xff\xff\xff\x7fa.",
    ],
)
def test_damaged_pickles_are_one_sentence(tmp_path, pkl):
    _check_refused(tmp_path, _zip(pkl))


def test_memo_bombs_and_self_containing_lists_end(tmp_path):
    _check_refused(tmp_path, _zip(b"]r\xff\xff\xff\xff."))  # memo slot 2**32 - 1
    _check_refused(tmp_path, _zip(b"]q\x00h\x00a."), UnsafeFileError)  # a list that holds itself
    doubling = b"]q\x00" + b"".join(b"](" + bytes([ord("h"), i]) * 20 + b"eq" + bytes([i + 1]) for i in range(7)) + b"."
    _check_refused(tmp_path, _zip(doubling))
    _check_refused(tmp_path, _zip(b"N0" * 150_000 + b"N."))


def _tensor_pickle(numel: object, offset: object, size: object, stride: object, storage: str = "FloatStorage") -> bytes:
    """A pickle of {"string_to_param": {"*": tensor}} with free numbers."""

    def number(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\n" + storage.encode() + b"\nV0\nVcpu\n" + number(numel) + b"tQ"
        + number(offset) + number(size) + number(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip
    return b"\x80\x02}Vstring_to_param\n}V*\n" + tensor + b"ss."


def test_the_hand_made_pickle_reads_when_its_numbers_are_right(tmp_path):
    data = torch.arange(8.0).numpy().tobytes()
    (tmp_path / "x.pt").write_bytes(_zip(_tensor_pickle(8, 0, (2, 4), (4, 1)), {"0": data}))
    assert torch.equal(load(tmp_path / "x.pt").vectors["clip_l"], torch.arange(8.0).view(2, 4))


@pytest.mark.parametrize(
    ("numel", "offset", "size", "stride"),
    [
        (8, 0, (2**40, 2**40), (0, 0)),
        (8, 0, (2**62,), (0,)),
        (8, 0, (2**30, 1), (0, 0)),
        (8, 0, (3, 4), (4, 1)),
        (8, 1, (2, 4), (4, 1)),
        (8, 2**70, (1, 1), (1, 1)),
        (8, -1, (2, 4), (4, 1)),
        (8, 0, (2, 4), (-4, 1)),
        (8, 0, (1, 4), (2**70, 1)),
        (8, 0, (-2, -4), (4, 1)),
        (8, 0, (0, 4), (4, 1)),
        (8, 0, (2, 4), (1,)),
        (8, 0, (1,) * 65, (1,) * 65),
        (8, 0, (2.0, 4), (4, 1)),
        (8, 0, (True, 4), (4, 1)),
        (8, None, (2, 4), (4, 1)),
        (8, 0, [2, 4], (4, 1)),
        (9, 0, (2, 4), (4, 1)),
        (2**62, 0, (2, 4), (4, 1)),
        (-8, 0, (2, 4), (4, 1)),
        (0, 0, (2, 4), (4, 1)),
        ("8", 0, (2, 4), (4, 1)),
        (10**30, 0, (2, 4), (4, 1)),
        (10**3000, 0, (2, 4), (4, 1)),
    ],
)
def test_tensors_never_reach_beyond_their_data(tmp_path, numel, offset, size, stride):
    pkl = _tensor_pickle(numel, offset, size, stride)
    _check_refused(tmp_path, _zip(pkl, {"0": b"\0" * 32}))
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    count = numel if isinstance(numel, int) and abs(numel) < 2**63 else 8
    _check_refused(tmp_path, head + pkl + pickle.dumps(["0"], 2) + struct.pack("<q", count) + b"\0" * 32)


def test_storages_must_be_there_and_of_a_known_type(tmp_path):
    _check_refused(tmp_path, _zip(_tensor_pickle(8, 0, (2, 4), (4, 1))))
    _check_refused(tmp_path, _zip(_tensor_pickle(8, 0, (2, 4), (4, 1), "QInt8Storage"), {"0": b"\0" * 32}), UnsafeFileError)
    _check_refused(tmp_path, _zip(_tensor_pickle(8, 0, (2, 4), (4, 1), "load"), {"0": b"\0" * 32}), UnsafeFileError)


def test_compressed_entries_are_refused(tmp_path):
    assert "compressed" in _check_refused(tmp_path, _zip(b"}.", compression=zipfile.ZIP_DEFLATED), UnsafeFileError)


def test_an_entry_that_occurs_twice_is_refused(tmp_path):
    buffer = BytesIO(_honest())
    with zipfile.ZipFile(buffer, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("archive/data.pkl", b"}.")
    assert "twice" in _check_refused(tmp_path, buffer.getvalue(), UnsafeFileError)


@pytest.mark.parametrize("name", ["other/data.pkl", "archive/evil.py", "archive/../data.pkl", "data.pkl", "archive/code/x.py"])
def test_foreign_entries_are_refused(tmp_path, name):
    buffer = BytesIO(_honest())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, b"}.")
    _check_refused(tmp_path, buffer.getvalue(), UnsafeFileError)


def test_data_around_the_zip_is_refused(tmp_path):
    honest = _honest()
    _check_refused(tmp_path, b"PK\x03\x04" + honest, UnsafeFileError)
    _check_refused(tmp_path, honest + b"more")
    _check_refused(tmp_path, b"#!/bin/sh\n" + honest)
    commented = BytesIO(honest)
    with zipfile.ZipFile(commented, "a") as archive:
        archive.comment = b"a comment can be a second zip"
    _check_refused(tmp_path, commented.getvalue(), UnsafeFileError)


def test_an_encrypted_zip_and_one_without_a_pickle_are_refused(tmp_path):
    honest = _honest()
    first = honest.index(b"PK\x01\x02")
    _check_refused(tmp_path, honest[: first + 8] + b"\x01" + honest[first + 9 :])
    _check_refused(tmp_path, b"PK\x05\x06" + b"\0" * 18)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/version", "3")
    _check_refused(tmp_path, buffer.getvalue())


@pytest.mark.parametrize("use", [b"X\x01\0\0\0a\x93.", b"cnumpy\ndtype\nq\x000h\x00N\x86."])
def test_deep_lists_are_never_spelt_out(tmp_path, use):
    lists = b"]" * 20_000 + b"a" * 19_999
    _check_refused(tmp_path, _zip(b"\x80\x02" + lists + use))
    _check_refused(tmp_path, _zip(b"\x80\x02cnumpy\ndtype\n" + lists + b"\x85R."))
    _check_refused(tmp_path, _zip(b"\x80\x02cnumpy\ndtype\n(Vf4\ntR(K\x03" + lists + b"tb."))


def test_big_endian_files_say_so(tmp_path):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", b"}.")
        archive.writestr("x/byteorder", "big")
    assert "big-endian" in _check_refused(tmp_path, buffer.getvalue())


def test_the_walk_stops_at_the_pickles_end():
    stream = BytesIO(pickle.dumps(1, 2) + pickle.dumps(OrderedDict(a=2), 2) + b"rest")
    assert walk_pickle(stream) == 1
    assert walk_pickle(stream) == {"a": 2}
    assert stream.read() == b"rest"
