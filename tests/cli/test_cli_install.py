"""The command `install` against a server on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.install_site import TOKEN, embedding_bytes, serving
from textual_inversion.cli import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEXTUAL_INVERSION_DATA", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CIVITAI_API_TOKEN", TOKEN)
    return tmp_path / "embeddings"


def test_one_from_a_site(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as site:
        monkeypatch.setenv("CIVITAI_ENDPOINT", site.address)
        site.civitai(12, 34, embedding_bytes())
        assert main(["install", f"{site.address}/models/12", "--name", "star", "--json"]) == 0
        said = capsys.readouterr()
        row = json.loads(said.out)["installed"][0]
        assert row["name"] == "star"
        assert row["hashes_compared"] == ["SHA256", "AutoV2"]
        assert row["num_vectors"] == 2
        assert {Path(path).name for path in row["beside"]} == {"star.civitai.info", "star.json", "star.preview.png"}
        assert TOKEN not in said.out + said.err
        assert main(["list"]) == 0
        assert "star " in capsys.readouterr().out


def test_several_of_which_one_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as site:
        site.files["/a.pt"] = embedding_bytes(1)
        site.files["/b.pt"] = embedding_bytes(2)
        assert main(["install", *(f"{site.address}/{name}.pt" for name in ("a", "missing", "b"))]) == 2
    said = capsys.readouterr()
    assert "There is nothing at" in said.err
    assert {path.name for path in folder.glob("*.safetensors")} == {"a.safetensors", "b.safetensors"}
    assert main(["install", "x.pt", "y.pt", "--name", "one"]) == 2
    assert "install them one by one" in capsys.readouterr().err


def test_one_that_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", str(folder / "missing.pt"), "--json"]) == 2
    said = capsys.readouterr()
    assert "missing.pt was not installed: it does not exist" in said.err
    assert "error" in json.loads(said.out)
