"""Files made to mislead, to take memory or time, or to act: each is one sentence in little memory, and nothing happens."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch

from tests.support.embeddings import load_all
from textual_inversion.errors import EmbeddingError, UnsafeFileError
from textual_inversion.formats import READ_ENDINGS, describe, describe_all, load
from textual_inversion.library import EmbeddingLibrary

MB = 2**20
LEGACY_HEAD = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


class _Creates:
    """Unpickling it with Python's own unpickler would make a file."""

    def __init__(self, target: Path, how: Callable[[Path], tuple[object, tuple[object, ...]]]) -> None:
        self.reduced = how(target)

    def __reduce__(self):
        return self.reduced


#: Ways to act that reach beyond the list by different names; `print` with a file is harmless by name and still acts.
ACTS: dict[str, Callable[[Path], tuple[object, tuple[object, ...]]]] = {
    "os.mkdir": lambda target: (os.mkdir, (str(target),)),
    "os.system": lambda target: (os.system, (f'echo x > "{target}"',)),
    "builtins.eval": lambda target: (eval, (f"open({str(target)!r}, 'w')",)),
    "builtins.exec": lambda target: (exec, (f"open({str(target)!r}, 'w')",)),
    "builtins.open": lambda target: (open, (str(target), "w")),
    "io.open_code": lambda target: (io.FileIO, (str(target), "w")),
    "subprocess": lambda target: (subprocess.call, (["touch", str(target)],)),
    "torch.load": lambda target: (torch.load, (str(target),)),
    "torch.save": lambda target: (torch.save, ({}, str(target))),
    "getattr": lambda target: (getattr, (target, "touch")),
}


def _zip(pkl: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", pkl)
        for key, data in (storages or {}).items():
            archive.writestr(f"x/data/{key}", data)
    return buffer.getvalue()


def _safetensors(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _check_refused(path: Path, data: bytes, kind: type[EmbeddingError] = EmbeddingError) -> str:
    path.write_bytes(data)
    with pytest.raises(kind) as error:
        load(path)
    assert error.value.path == path
    assert "\n" not in error.value.reason
    assert len(error.value.reason) < 600
    return error.value.reason


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("ending", [".pt", ".bin", ".safetensors", ".png"])
def test_no_hostile_pickle_ever_acts(tmp_path, act, ending):
    folder, canary = tmp_path / "embeddings", tmp_path / "canary"
    folder.mkdir()
    attack = {"string_to_param": {"*": _Creates(canary, ACTS[act])}}
    honest = BytesIO()
    torch.save({"string_to_param": {"*": torch.ones(1, 768)}}, honest)
    bodies = {
        "zip": _zip(pickle.dumps(attack, 2)),
        "zip4": _zip(pickle.dumps(attack, 4)),
        "legacy": LEGACY_HEAD + pickle.dumps(attack, 2) + pickle.dumps([], 2),
        "plain": pickle.dumps(attack, 2),
        "first": pickle.dumps(_Creates(canary, ACTS[act]), 2),
        "appended": LEGACY_HEAD + pickle.dumps(attack, 2) + pickle.dumps([], 2) + honest.getvalue(),
    }
    for name, data in bodies.items():
        path = folder / f"{name}{ending}"
        path.write_bytes(data)
        for call in (load, load_all, describe, describe_all):
            with pytest.raises(UnsafeFileError):
                call(path)
    library = EmbeddingLibrary([folder])
    assert [entry for entry in library.entries() if entry.usable] == []
    library.rescan()
    assert not canary.exists()
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}{ending}" for name in bodies)


def test_the_canary_would_sing(tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(_Creates(canary, ACTS["os.mkdir"]), 2))
    assert canary.exists()


@pytest.mark.parametrize(
    "call",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n)R",
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR",
        b"ctorch._utils\n_rebuild_tensor_v3\n(K\x01K\x00))tR",
        b"ctorch._utils\n_rebuild_parameter\n)R",
        b"ctorch._utils\n_rebuild_parameter\n(cos\nsystem\ntR",
        b"ctorch._utils\n_rebuild_parameter\n(}tR",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nFloatStorage\nN)}tR",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nN)}tR",
        b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n(K\x01tR",
        b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n)R",
        b"cnumpy.core.multiarray\nscalar\n)R",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(Vi8\ntRc_codecs\nencode\n(Vabc\nVlatin1\ntRtR",
        b"cnumpy\ndtype\n)R",
        b"c_codecs\nencode\n(Vabc\nVrot13\ntR",
        b"c_codecs\nencode\n)R",
        b"ctorch\nSize\n(VabctR",
        b"ctorch.nn.modules.container\nParameterDict\n(K\x01tR",
        b"ccollections\nOrderedDict\n(K\x01tR",
        b"ctorch\nfloat32\n)R",
        b"ctorch\nFloatStorage\n)R",
        b"ctorch\nSize\n}b",
    ],
)
def test_honest_names_with_wrong_arguments_are_refused(tmp_path, call):
    _check_refused(tmp_path / "bad.pt", _zip(b"}Vstring_to_param\n}V*\n" + call + b"ss."))


def _array_pickle(size: tuple[int, ...], data: bytes, code: str = "f4", order: str = "<") -> bytes:
    """A pickle of `_rebuild_device_tensor_from_numpy` with free numbers."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tV\ntR"
    dtype = f"cnumpy\ndtype\n(V{code}\nI00\nI01\ntR(K\x03V{order}\nNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb".encode("latin-1")
    state = b"(K\x01" + pickle.dumps(size, 2)[2:-1] + dtype + b"\x89" + pickle.dumps(data, 3)[2:-1] + b"tb"
    tensor = b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n(" + array + state + b"ctorch\nfloat32\nVprivateuseone:0\n\x89tR"
    return b"\x80\x03}Vstring_to_param\n}V*\n" + tensor + b"ss."


def test_an_array_inside_the_pickle_is_read_when_its_numbers_are_right(tmp_path):
    values = torch.arange(8.0)
    path = tmp_path / "x.pt"
    path.write_bytes(_zip(_array_pickle((2, 4), values.numpy().tobytes())))
    assert torch.equal(load(path).vectors["clip_l"], values.view(2, 4))


@pytest.mark.parametrize(
    ("size", "code", "order"),
    [
        ((3, 4), "f4", "<"),
        ((2**40, 2**40), "f4", "<"),
        ((-2, -4), "f4", "<"),
        ((0, 4), "f4", "<"),
        ((1,) * 9, "f4", "<"),
        ((2, 4), "f8", "<"),
        ((2, 4), "f4", ">"),
        ((2, 4), "O8", "|"),
    ],
)
def test_an_array_never_reaches_beyond_its_data(tmp_path, size, code, order):
    _check_refused(tmp_path / "bad.pt", _zip(_array_pickle(size, b"\0" * 32, code, order)))


def _honest_zip() -> bytes:
    buffer = BytesIO()
    torch.save({"string_to_param": {"*": torch.ones(1, 768)}}, buffer)
    return buffer.getvalue()


def _entry(data: bytes, name: bytes) -> tuple[int, int]:
    """Where the entry's own header and its line in the list at the end begin."""
    local = data.index(name) - 30
    return local, data.index(b"PK\x01\x02", data.rindex(name) - 46)


@pytest.mark.parametrize("part", [b"data.pkl", b"data/0"])
def test_a_zip_that_two_readers_could_read_differently_is_refused(tmp_path, part):
    data = _honest_zip()
    name = b"archive/" + part
    local, _ = _entry(data, name)
    other_name = data[: local + 30] + b"archive/" + part[:-1] + b"X" + data[local + 30 + len(name) :]
    assert "two ways" in _check_refused(tmp_path / "name.pt", other_name, UnsafeFileError)
    packed = data[: local + 8] + b"\x08\x00" + data[local + 10 :]
    assert "two ways" in _check_refused(tmp_path / "packed.pt", packed, UnsafeFileError)
    encrypted = data[: local + 6] + b"\x01\x08" + data[local + 8 :]
    _check_refused(tmp_path / "encrypted.pt", encrypted)


def test_zip_entries_that_overlap_are_refused(tmp_path):
    data = bytearray(_zip(b"}.", {"0": b"\0" * 64, "1": b"\0" * 64}))
    first, second = (data.rindex(f"x/data/{key}".encode()) - 46 for key in "01")
    data[second + 42 : second + 46] = data[first + 42 : first + 46]  # both begin at the same place
    _check_refused(tmp_path / "same.pt", bytes(data), UnsafeFileError)
    data = bytearray(_zip(b"}.", {"0": b"\0" * 64, "1": b"\0" * 64}))
    data[first + 20 : first + 28] = struct.pack("<II", 100, 100)  # reaches into the next one
    said = _check_refused(tmp_path / "longer.pt", bytes(data))
    assert "overlap" in said or "damaged" in said


@pytest.mark.parametrize("field", [20, 24])
@pytest.mark.parametrize("size", [0, 1, 2**31, 2**32 - 1])
def test_swapped_sizes_in_a_zip_are_refused(tmp_path, field, size):
    data = bytearray(_zip(b"}.", {"0": b"\0" * 64}))
    central = data.rindex(b"x/data/0") - 46
    data[central + field : central + field + 4] = struct.pack("<I", size)
    _check_refused(tmp_path / "bad.pt", bytes(data))


@pytest.mark.parametrize("count", [-1, 0, 7, 9, 2**62])
def test_swapped_counts_in_a_legacy_file_are_refused(tmp_path, count):
    buffer = BytesIO()
    torch.save({"string_to_param": {"*": torch.ones(1, 8)}}, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    assert data[-40:-32] == struct.pack("<q", 8)
    _check_refused(tmp_path / "bad.pt", data[:-40] + struct.pack("<q", count) + data[-32:])


@pytest.mark.parametrize(
    "header",
    [
        {"emb_params": {"dtype": "F32", "shape": [1, 4], "data_offsets": [4, 20]}},
        {
            "emb_params": {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]},
            "a": {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]},
        },
        {
            "emb_params": {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]},
        },
        {"emb_params": {"dtype": "F16", "shape": [1, 4], "data_offsets": [0, 16]}},
        {"emb_params": {"dtype": "F32", "shape": [1, True], "data_offsets": [0, 4]}},
        {"emb_params": {"dtype": "F32", "shape": [2**39, 2**39], "data_offsets": [0, 16]}},
        {"emb_params": {"dtype": ["F32"], "shape": [1, 4], "data_offsets": [0, 16]}},
        {"emb_params": {"dtype": "F32", "shape": "14", "data_offsets": [0, 16]}},
        {"emb_params": {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16.0]}},
        {"__metadata__": [], "emb_params": {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]}},
        {},
        [],
        b'{"emb_params":{"dtype":"F32","shape":[1,4],"data_offsets":[0,16]},"emb_params":{"dtype":"F32","shape":[1,4],"data_offsets":[0,16]}}',
        b'{"emb_params":{"dtype":"F32","dtype":"F16","shape":[1,4],"data_offsets":[0,16]}}',
        b'{"emb_params":{"dtype":"F32","shape":[1,1e400],"data_offsets":[0,16]}}',
        b'{"emb_params":{"dtype":"F32","shape":[1,NaN],"data_offsets":[0,16]}}',
        b'{"emb_params":{"dtype":"F32","shape":[1,' + b"9" * 5000 + b'],"data_offsets":[0,16]}}',
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header):
    _check_refused(tmp_path / "bad.safetensors", _safetensors(header, b"\0" * 16))


def _bomb_files(folder: Path) -> None:
    """Files that would take the most memory or time of a careless reader."""
    many = {f"t{index}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * index, 4 * index + 4]} for index in range(9_999)}
    bombs = {
        "deflated.pt": _deflated(b"\0" * (100 * MB)),
        "large.pt": _zip(b"}.", {"0": b"\0" * (63 * MB)}),
        "view.pt": _zip(_view_pickle(15 * MB), {"0": b"\0" * (60 * MB)}),
        "pickle.pt": _zip(b"X" + struct.pack("<I", 60 * MB) + "😀".encode() + b"a" * (60 * MB - 4) + b"."),
        "legacy.pt": LEGACY_HEAD + b"X" + struct.pack("<I", 60 * MB) + "😀".encode() + b"a" * (60 * MB - 4) + b".",
        "line.pt": _zip(b"I" + b"9" * (3 * MB) + b"\n."),
        "strings.pt": _zip(b"(" + b"X\x50\0\0\0" * 50_000 + b"t."),
        "collide.pt": _zip(b"}(" + b"".join(pickle.dumps(index * (2**61 - 1), 2)[2:-1] + b"N" for index in range(1, 20_000)) + b"u."),
        "double.pt": _zip(b"]q\x00" + b"".join(b"](" + bytes([ord("h"), i]) * 200 + b"eq" + bytes([i + 1]) for i in range(200)) + b"."),
        "nested.pt": _zip(b"(" * 45_000 + b"t" * 4_000 + b"."),
        "lists.safetensors": _safetensors(b'{"a":[' + b"[]," * (4 * MB // 3 - 10) + b"[]]}"),
        "dicts.safetensors": _safetensors(b'{"a":[' + b'{"":0},' * (4 * MB // 7 - 10) + b"[]]}"),
        "keys.safetensors": _safetensors(b"{" + b",".join(b'"%d":0' % index for index in range(300_000)) + b"}"),
        "many.safetensors": _safetensors(many, b"\0" * 39_996),
        "deep.safetensors": _safetensors(b'{"a":' * 600_000),
        "nested.safetensors": _safetensors(b'{"a":[' + b",".join([b'{"":' * 900 + b"0" + b"}" * 900] * 930) + b"]}"),
        "entries.pt": _zip(b"}.")[:40] + b"PK\x01\x02".ljust(46, b"\0") * 1_300_000 + b"PK\x05\x06".ljust(22, b"\0"),
        "name.pt": LEGACY_HEAD + _doubled_lists() + b"X\x01\0\0\0a\x93.",
        "type.pt": LEGACY_HEAD + b"\x80\x02cnumpy\ndtype\n" + _doubled_lists()[2:] + b"\x85R.",
    }
    for name, data in bombs.items():
        (folder / name).write_bytes(data)


def _doubled_lists() -> bytes:
    """The beginning of a pickle with a list that holds one list twice, and so on: spelt out, it would take 2 to the power of 40 letters."""
    return b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes([place + 1]) + b"(h" + bytes([place]) + b"h" + bytes([place]) + b"e" for place in range(40)
    )


def _deflated(data: bytes) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x/data.pkl", b"}.")
        archive.writestr("x/data/0", data)
    return buffer.getvalue()


def _view_pickle(stride: int) -> bytes:
    """Two rows that lie `stride` elements apart, which is nearly all of the data."""
    head = b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n"
    numbers = [pickle.dumps(value, 2)[2:-1] for value in (15 * MB, 0, (2, 768), (stride - 768, 1))]
    tensor = head + numbers[0] + b"tQ" + b"".join(numbers[1:]) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}Vstring_to_param\n}V*\n" + tensor + b"ss."


_MEASURE = """
import sys, time
from pathlib import Path
import torch
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats import describe, load

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) // 1024

torch.ones(2).clone()
before = status("VmRSS")
for path in sorted(Path(sys.argv[1]).iterdir()):
    begun = time.monotonic()
    for call in (describe, load):
        try:
            call(path)
        except EmbeddingError as error:
            assert len(str(error)) < 1000
    print(path.name, status("VmHWM") - before, time.monotonic() - begun)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_no_file_takes_much_memory_or_time(tmp_path):
    _bomb_files(tmp_path)
    here = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", _MEASURE, str(tmp_path)], capture_output=True, text=True, cwd=here)
    assert run.returncode == 0, run.stderr
    print(run.stdout)
    rows = [line.split() for line in run.stdout.splitlines()]
    assert len(rows) == len(list(tmp_path.iterdir()))
    assert [name for name, megabytes, _ in rows if float(megabytes) >= 200] == []
    assert [name for name, _, seconds in rows if float(seconds) >= 20] == []


def test_the_library_lists_every_bomb_with_its_reason(tmp_path):
    for name, data in {
        "a.pt": _deflated(b"\0" * MB),
        "b.pt": _zip(b"N0" * 60_000 + b"N."),
        "c.safetensors": _safetensors(b'{"a":' * 1000),
    }.items():
        (tmp_path / name).write_bytes(data)
    entries = EmbeddingLibrary([tmp_path]).entries()
    assert [entry.path.name for entry in entries] == ["a.pt", "b.pt", "c.safetensors"]
    assert all(entry.reason and "\n" not in entry.reason for entry in entries)
    assert set(READ_ENDINGS) >= {".safetensors", ".pt", ".bin", ".pti"}
