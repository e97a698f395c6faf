"""Scans: what changed on the disk is seen, what did not is not read again, and what cannot be read is told."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import textual_inversion.library.catalog as catalog
import textual_inversion.library.folders as folders
from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError
from textual_inversion.files import open_regular
from textual_inversion.formats import save
from textual_inversion.library import EmbeddingLibrary

SD1 = {"clip_l": 768}


def put(path: Path, value: float = 1.0, width: int = 768) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(Embedding(path.stem, {"clip_l" if width == 768 else "clip_h": torch.full((1, width), value)}), path, overwrite=True)


def picture(path: Path) -> Path:
    Image.new("RGB", (24, 16), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are described."""
    names: list[str] = []
    describe_all = catalog.describe_all
    monkeypatch.setattr(catalog, "describe_all", lambda path: names.append(path.name) or describe_all(path))
    return names


def test_without_a_change_the_very_same_entries_come_back(tmp_path: Path, read: list[str]) -> None:
    put(tmp_path / "cat.pt")
    put(tmp_path / "sub" / "dog.safetensors")
    library = EmbeddingLibrary([tmp_path], SD1)
    first, version = library.rescan(), library.version
    again = library.rescan()
    assert [id(entry) for entry in again] == [id(entry) for entry in first]
    assert library.version == version
    assert len(read) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda root: put(root / "sub" / "deep" / "new.pt"),
        lambda root: put(root / "sub" / "dog.safetensors", width=1024),
        lambda root: (root / "sub" / "dog.safetensors").unlink(),
        lambda root: picture(root / "sub" / "dog.preview.png"),
        lambda root: (root / "sub" / "dog.txt").write_text("woof"),
        lambda root: (root / "cat.pt").rename(root / "kitten.pt"),
        lambda root: (root / "sub").rename(root / "other"),
    ],
    ids=["new", "overwritten", "deleted", "preview", "notes", "renamed", "folder renamed"],
)
def test_changes_are_seen_by_the_next_scan(tmp_path: Path, change: Callable[[Path], object]) -> None:
    put(tmp_path / "cat.pt")
    put(tmp_path / "sub" / "dog.safetensors")
    library = EmbeddingLibrary([tmp_path], SD1)
    before, version = library.rescan(), library.version
    change(tmp_path)
    assert library.entries() == before
    assert library.rescan() != before
    assert library.version != version
    assert library.entries() == EmbeddingLibrary([tmp_path], SD1).entries()


def test_another_width_reads_nothing(tmp_path: Path, read: list[str]) -> None:
    put(tmp_path / "cat.pt")
    library = EmbeddingLibrary([tmp_path], SD1)
    library.rescan()
    assert library.set_width({"clip_h": 1024})[0].reason.startswith("made for SD1")
    assert library.set_width(None)[0].usable
    assert read == ["cat.pt"]


def test_recent_scans_only_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = EmbeddingLibrary([tmp_path], SD1)
    assert library.recent() == []
    put(tmp_path / "cat.pt")
    assert library.recent() == []
    now = time.monotonic()
    monkeypatch.setattr(catalog.time, "monotonic", lambda: now + 3)
    assert [entry.name for entry in library.recent()] == ["cat"]


# pictures


def test_pictures_are_embeddings_only_where_they_carry_one(tmp_path: Path, read: list[str]) -> None:
    put(tmp_path / "cat.pt")
    for name in ("cat.png", "cat.preview.png", "CAT.webp", "dog.preview.webp", "holiday.png"):
        picture(tmp_path / name)
    (tmp_path / "photo.jpg").write_bytes(b"no picture")
    carrier = save(Embedding("bird", {"clip_l": torch.ones(1, 768)}), tmp_path / "bird.png")
    library = EmbeddingLibrary([tmp_path], SD1)
    assert [(entry.name, entry.path.name, entry.reason) for entry in library.entries()] == [("bird", "bird.png", ""), ("cat", "cat.pt", "")]
    assert sorted(read) == ["bird.png", "cat.pt", "holiday.png"]
    assert library.find("bird").preview == carrier
    assert library.get("bird").vectors["clip_l"].tolist() == torch.ones(1, 768).tolist()
    library.rescan()
    assert len(read) == 3


def test_a_picture_becomes_a_preview_and_back(tmp_path: Path) -> None:
    save(Embedding("cat", {"clip_l": torch.full((1, 768), 2.0)}), tmp_path / "cat.png")
    library = EmbeddingLibrary([tmp_path], SD1)
    assert library.get("cat").vectors["clip_l"][0, 0] == pytest.approx(2.0)
    put(tmp_path / "cat.pt", 1.0)
    library.rescan()
    assert [entry.path.name for entry in library.entries()] == ["cat.pt"]
    assert library.get("cat").vectors["clip_l"][0, 0] == 1
    (tmp_path / "cat.pt").unlink()
    library.rescan()
    assert [entry.path.name for entry in library.entries()] == ["cat.png"]


# vectors


def put_damaged(path: Path) -> None:
    """An embedding with NaN, which `save` refuses."""
    from safetensors.torch import save_file

    save_file({"emb_params": torch.full((1, 768), float("nan"))}, path)


def test_an_error_while_loading_becomes_the_reason(tmp_path: Path) -> None:
    put_damaged(tmp_path / "cat.safetensors")
    put(tmp_path / "sub" / "cat.safetensors", 5.0)
    library = EmbeddingLibrary([tmp_path], SD1)
    version = library.version
    with pytest.raises(EmbeddingError) as error:
        library.get("cat")
    assert error.value.path == tmp_path / "cat.safetensors"
    assert library.version != version
    assert library.find("cat").path == tmp_path / "sub" / "cat.safetensors"
    assert library.get("cat").vectors["clip_l"][0, 0] == 5
    reasons = [entry.reason for entry in library.rescan() if not entry.usable]
    assert len(reasons) == 1
    assert reasons[0].startswith("its vectors hold values that are not finite")
    put(tmp_path / "cat.safetensors", 6.0)
    library.rescan()
    assert library.get("cat").vectors["clip_l"][0, 0] == 6


def test_the_mapping_loads_vectors_when_a_name_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = catalog.load
    monkeypatch.setattr(catalog, "load", lambda path, name, **more: loaded.append(name) or load(path, name, **more))
    put(tmp_path / "cat.pt")
    put(tmp_path / "dog.pt")
    put(tmp_path / "old.pt", width=1024)
    library = EmbeddingLibrary([tmp_path], SD1)
    mapping = library.as_mapping()
    assert (list(mapping), len(mapping), "dog" in mapping, "old" in mapping, "DOG" in mapping, 3 in mapping) == (
        ["cat", "dog"], 2, True, False, False, False,
    )  # fmt: skip
    assert loaded == []
    assert mapping["dog"].num_vectors == 1
    assert loaded == ["dog"]
    with pytest.raises(KeyError):
        mapping["old"]


def test_the_hash_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    file_sha256 = catalog.file_sha256
    monkeypatch.setattr(catalog, "file_sha256", lambda path: hashed.append(path) or file_sha256(path))
    path = put(tmp_path / "cat.pt")
    library = EmbeddingLibrary([tmp_path], SD1)
    entry = library.entries()[0]
    assert hashed == []
    assert library.sha256(entry) == library.sha256(entry) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(hashed) == 1
    put(path, 2.0)
    assert library.sha256(entry) == hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()
    with pytest.raises(EmbeddingError) as error:
        library.sha256(entry)
    assert error.value.path == path


# what cannot be read


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Refuse access to the folder of a name, as the system would; permissions do not bind an administrator."""

    def refuse(name: str, error: type[OSError] = PermissionError) -> None:
        scandir = os.scandir

        def guarded(path: str) -> Any:
            if os.path.basename(path) == name:
                raise error(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(folders.os, "scandir", guarded)

    return refuse


def test_a_folder_that_cannot_be_searched_is_listed(tmp_path: Path, refusing: Callable[..., None]) -> None:
    put(tmp_path / "cat.pt")
    put(tmp_path / "closed" / "dog.pt")
    refusing("closed")
    library = EmbeddingLibrary([tmp_path], SD1)
    assert library.names() == ["cat"]
    entry = library.find("closed")
    assert (entry.path, entry.info) == (tmp_path / "closed", None)
    assert entry.reason == "the folder cannot be searched: access is not allowed; check its permissions."
    with pytest.raises(EmbeddingError) as error:
        library.get("closed")
    assert error.value.path == entry.path


def test_a_folder_that_vanishes_while_scanning_is_no_error(tmp_path: Path, refusing: Callable[..., None]) -> None:
    put(tmp_path / "cat.pt")
    put(tmp_path / "fading" / "dog.pt")
    refusing("fading", FileNotFoundError)
    assert [entry.name for entry in EmbeddingLibrary([tmp_path], SD1).entries()] == ["cat"]


def test_a_file_that_vanishes_while_scanning_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [put(tmp_path / f"{name}.pt") for name in ("cat", "dog")]
    describe_all = catalog.describe_all

    def fading(path: Path) -> Any:
        if path.name == "cat.pt":
            path.unlink()
        return describe_all(path)

    monkeypatch.setattr(catalog, "describe_all", fading)
    library = EmbeddingLibrary([tmp_path], SD1)
    assert [entry.name for entry in library.entries()] == ["dog"]
    put(paths[0])
    monkeypatch.setattr(catalog, "describe_all", describe_all)
    assert [entry.name for entry in library.rescan()] == ["cat", "dog"]


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that may not be read."""
    path = put(tmp_path / "locked.pt")

    def refuse(file: object, *more: object, **options: object) -> Any:
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return open_regular(file, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("textual_inversion.formats.containers.file_bytes.open_regular", refuse)
    yield path
    monkeypatch.undo()


def test_a_file_that_may_not_be_read_is_listed_until_it_may(locked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = EmbeddingLibrary([tmp_path], SD1)
    assert (
        library.entries()[0].reason
        == "it cannot be read: access is not allowed; check the permissions, and that no other program holds the file."
    )
    monkeypatch.undo()
    assert library.rescan()[0].usable


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on Windows")
def test_a_pipe_does_not_stop_the_scan(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    assert "is not a file" in EmbeddingLibrary([tmp_path], SD1).entries()[0].reason


@pytest.mark.parametrize("name", ["a" * 250, "🐈 <b>", "con", "x:y", " spaced ", "BREAK", "caf\udce9"])
def test_any_file_name_becomes_a_name_for_prompts(tmp_path: Path, name: str) -> None:
    from textual_inversion.embedding import check_name

    try:
        (tmp_path / f"{name}.safetensors").write_bytes(put(tmp_path / "plain.pt").read_bytes())
    except OSError:
        pytest.skip("this system has no such names")
    (tmp_path / "plain.pt").unlink()
    library = EmbeddingLibrary([tmp_path], SD1)
    assert library.get(check_name(library.names()[0])).num_vectors == 1


def test_a_path_that_is_no_text_is_spelt_out_in_reasons(tmp_path: Path) -> None:
    data = put(tmp_path / "plain.safetensors").read_bytes()
    try:
        for name in ("caf\udce9.pt", "caf\udce9.safetensors"):  # Latin-1, as old archives hold it
            (tmp_path / name).write_bytes(data)
    except OSError:
        pytest.skip("this system has no such names")
    library = EmbeddingLibrary([tmp_path], SD1)
    reason = next(entry.reason for entry in library.entries() if entry.name == "caf_" and entry.reason)
    assert r"caf\udce9.safetensors has the same name" in reason
    assert reason.encode()
