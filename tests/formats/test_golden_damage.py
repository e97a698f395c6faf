"""Golden files with a byte changed, cut off or swapped: an error of this package or the same kind of object, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.embeddings import load_all
from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats import FileInfo, describe_all

FOLDER = Path(__file__).resolve().parent.parent / "golden"
FILES = {name: (FOLDER / name).read_bytes() for name in json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))}
PICKLES = [name for name, data in FILES.items() if data[:2] in (b"PK", b"\x80\x02")]
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def assert_one_sentence_about(path: Path, error: EmbeddingError) -> None:
    assert error.path == path
    assert "\n" not in error.reason
    assert len(error.reason) < 700


def _check_errors_or_embeddings(path: Path, data: bytes) -> None:
    """Any other exception than the package's fails the test."""
    path.write_bytes(data)
    for call, kind in ((describe_all, FileInfo), (load_all, Embedding)):
        try:
            embeddings = call(path)
        except EmbeddingError as error:
            assert_one_sentence_about(path, error)
            continue
        assert all(isinstance(one, kind) for one in embeddings)
        for one in embeddings:
            vectors = one.vectors if isinstance(one, Embedding) else {}
            assert all(tensor.dtype == torch.float32 and torch.isfinite(tensor).all() for tensor in vectors.values())


@st.composite
def places(draw: st.DrawFn, size: int) -> int:
    """A position in a file, most often near its begin or its end, where the structure is."""
    near = st.integers(0, min(size - 1, 1200))
    return draw(near | near.map(lambda position: size - 1 - position) | st.integers(0, size - 1))


@settings(shared, max_examples=400)
@given(data=st.data(), name=st.sampled_from(sorted(FILES)), value=st.integers(0, 255))
def test_any_byte_may_change(tmp_path: Path, data: st.DataObject, name: str, value: int) -> None:
    content = bytearray(FILES[name])
    content[data.draw(places(len(content)))] = value
    _check_errors_or_embeddings(tmp_path / "damaged.pt", bytes(content))


@settings(shared, max_examples=150)
@given(data=st.data(), name=st.sampled_from(sorted(FILES)), length=st.integers(1, 16))
def test_any_run_of_bytes_may_be_lost_doubled_or_moved(tmp_path: Path, data: st.DataObject, name: str, length: int) -> None:
    content = FILES[name]
    begin, target = data.draw(places(len(content))), data.draw(places(len(content)))
    part = content[begin : begin + length]
    for changed in (content[:begin] + content[begin + length :], content[:target] + part + content[target:]):
        _check_errors_or_embeddings(tmp_path / "damaged.pt", changed)


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_part_of_a_file_is_read(tmp_path: Path, name: str) -> None:
    content, path = FILES[name], tmp_path / "cut.pt"
    lengths = {*range(1, 20), *range(len(content) - 24, len(content)), *range(20, len(content), max(1, len(content) // 16))}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        for call in (describe_all, load_all):
            with pytest.raises(EmbeddingError):
                call(path)


@pytest.mark.parametrize("name", PICKLES)
def test_every_byte_of_a_golden_pickle_may_change(tmp_path: Path, name: str) -> None:
    """The instructions only: the tensors' bytes are only values."""
    content = FILES[name]
    begin = content.index(b"\x80\x02")
    end = content.index(b".PK", begin) if content[:2] == b"PK" and b".PK" in content[begin:] else min(len(content), begin + 700)
    for position in range(begin, min(end, begin + 700), 11):
        changed = content[:position] + bytes([content[position] ^ (1 << position % 8)]) + content[position + 1 :]
        _check_errors_or_embeddings(tmp_path / "damaged.pt", changed)
