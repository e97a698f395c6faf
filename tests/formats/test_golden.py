"""Golden files: what each program writes is read as what went in, and the script that made them still makes the same."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.support.embeddings import load_all
from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError, UnknownLayoutError
from textual_inversion.formats import FileInfo, describe_all, load

FOLDER = Path(__file__).resolve().parent.parent / "golden"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
READ = sorted(name for name, expected in EXPECTED.items() if "layout" in expected)
REFUSED = sorted(name for name, expected in EXPECTED.items() if "refused" in expected)


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_golden", FOLDER / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _digest(vectors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().astype("<f4").tobytes() for _, tensor in sorted(vectors.items()))).hexdigest()


def _told(info: FileInfo) -> dict[str, Any]:
    told = {key: getattr(info, key) for key in ("counts", "widths", "family", "dtype", "word", "stored_name")}
    return {**told, "step": info.provenance.step}


def _check_embedding(path: Path, info: FileInfo, expected: dict[str, Any]) -> None:
    assert _told(info) == {key: value for key, value in expected.items() if key not in ("unusable", "sha256")}
    if expected["unusable"]:
        assert expected["unusable"] in info.unusable
        with pytest.raises(EmbeddingError, match=expected["unusable"]):
            load(path, word=info.word)
        return
    assert info.unusable == ""
    embedding = load(path, word=info.word)
    assert isinstance(embedding, Embedding)
    assert all(tensor.dtype == torch.float32 for tensor in embedding.vectors.values())
    assert _digest(embedding.vectors) == expected["sha256"]
    assert info.num_vectors == embedding.num_vectors == max(expected["counts"].values())


def _check_file(path: Path, expected: dict[str, Any]) -> None:
    infos = describe_all(path)
    assert {info.layout for info in infos} == {expected["layout"]}
    assert len(infos) == len(expected["embeddings"])
    for info, one in zip(infos, expected["embeddings"], strict=True):
        _check_embedding(path, info, one)


@pytest.mark.parametrize("name", READ)
def test_a_golden_file_is_read_as_what_went_into_it(name):
    assert (FOLDER / name).is_file()
    _check_file(FOLDER / name, EXPECTED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_a_foreign_file_is_named_with_the_place_where_it_belongs(name):
    with pytest.raises(UnknownLayoutError, match=EXPECTED[name]["refused"]) as caught:
        describe_all(FOLDER / name)
    assert caught.value.path == FOLDER / name
    assert "\n" not in caught.value.reason


def test_every_golden_file_is_expected_and_small():
    made = [path for path in FOLDER.rglob("*") if path.is_file() and "pictures" not in path.parts and "__pycache__" not in path.parts]
    assert {path.relative_to(FOLDER).as_posix() for path in made} - {"make_golden.py", "expected.json"} == set(EXPECTED)
    assert sum(path.stat().st_size for path in made) < 1.1e6


def test_the_script_still_makes_the_same_contents(tmp_path):
    made = _script().make_all(tmp_path)
    for name, expected in json.loads(json.dumps(made)).items():
        if "torch-" not in name or name in EXPECTED:  # another torch's files are named after it
            assert expected == EXPECTED[name]
        if "layout" in expected:
            _check_file(tmp_path / name, expected)


def test_several_words_load_at_once_each_under_its_own_name():
    found = load_all(FOLDER / "diffusers-several.safetensors")
    assert [embedding.num_vectors for embedding in found] == [1, 2]
    assert len({embedding.name for embedding in found}) == 2
    with pytest.raises(EmbeddingError, match="<s0>"):
        load(FOLDER / "diffusers-several.safetensors", word="<s7>")
