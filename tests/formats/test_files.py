"""Loading, saving and describing files: names, endings, and a save that is all or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
import torch

from textual_inversion.audit.inspect import inspect_file
from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import EmbeddingError, NameTakenError, UnknownLayoutError
from textual_inversion.formats import describe, load, save, write_atomic
from textual_inversion.formats.containers import file_bytes as files

CAT = Embedding("cat", {"clip_l": torch.ones(2, 768)}, Provenance(step=5))
DOG = Embedding("dog", {"clip_l": torch.zeros(1, 768)})


def test_the_name_is_the_files_cleaned_or_the_one_given(tmp_path):
    path = save(CAT, tmp_path / "my (cat).safetensors")
    assert load(path).name == "my _cat_"
    assert load(str(path), "dog").name == "dog"


@pytest.mark.parametrize(("given", "written"), [("cat", "cat.safetensors"), ("v1.5", "v1.5.safetensors"), ("cat.PT", "cat.PT")])
def test_the_ending_chooses_the_layout_and_safetensors_is_added_without_one(tmp_path, given, written):
    assert save(CAT, tmp_path / given) == tmp_path / written
    assert [path.name for path in tmp_path.iterdir()] == [written]


@pytest.mark.parametrize("name", ["cat.bin", "cat.webp", "cat.ckpt"])
def test_an_ending_that_is_not_written_names_those_that_are(tmp_path, name):
    with pytest.raises(EmbeddingError, match=r"\.safetensors or .*\.pt"):
        save(CAT, tmp_path / name)


@pytest.mark.parametrize("path", ["", "a\0b", "."])
def test_what_is_no_path_is_an_error_of_ours(path):
    with pytest.raises(EmbeddingError):
        save(CAT, path)
    with pytest.raises(EmbeddingError):
        load(path)


def test_an_existing_file_is_kept_unless_asked(tmp_path):
    path = save(CAT, tmp_path / "cat.safetensors")
    with pytest.raises(NameTakenError) as error:
        save(DOG, path)
    assert error.value.path == path
    assert load(path).num_vectors == 2
    save(DOG, path, overwrite=True)
    assert load(path).num_vectors == 1


def test_a_name_taken_while_writing_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "cat.safetensors"
    sync = os.fsync

    def meanwhile(handle: int) -> None:
        sync(handle)
        path.write_text("somebody else's")

    monkeypatch.setattr(os, "fsync", meanwhile)
    with pytest.raises(NameTakenError):
        save(CAT, path)
    monkeypatch.undo()
    assert path.read_text() == "somebody else's"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_hard_links_works(tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    path = save(CAT, tmp_path / "cat.safetensors")
    assert load(path).num_vectors == 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("call", "number", "says"), [("fsync", errno.ENOSPC, "disk is full"), ("replace", errno.EACCES, "not allowed")])
def test_a_failed_save_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, call, number, says):
    path = save(DOG, tmp_path / "cat.safetensors")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(number, "")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(EmbeddingError, match=says):
        save(CAT, path, overwrite=True)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_really_full_disk_says_so(tmp_path, monkeypatch):
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr("textual_inversion.files.open", lambda *_: full, raising=False)
        with pytest.raises(EmbeddingError, match=r"cat\.safetensors was not written: the disk is full"):
            save(CAT, tmp_path / "cat.safetensors")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(EmbeddingError, match="nowhere does not exist") as error:
        save(CAT, tmp_path / "nowhere" / "cat.safetensors")
    assert error.value.path == tmp_path / "nowhere" / "cat.safetensors"


@pytest.mark.skipif(os.name != "posix", reason="links and modes as on POSIX")
def test_a_link_stays_a_link_and_the_usual_mode_is_kept(tmp_path):
    real = save(DOG, tmp_path / "real.safetensors")
    link = tmp_path / "link.safetensors"
    link.symlink_to(real)
    save(CAT, link, overwrite=True)
    assert link.is_symlink()
    assert load(real).num_vectors == 2
    plain = tmp_path / "plain"
    plain.touch()
    assert real.stat().st_mode == plain.stat().st_mode


def test_a_link_to_nothing_is_kept_and_nothing_is_written_where_it_leads(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (inside / "cat.safetensors").symlink_to(outside / "cat.safetensors")
    with pytest.raises(NameTakenError):
        save(CAT, inside / "cat.safetensors")
    assert list(outside.iterdir()) == []
    save(CAT, inside / "cat.safetensors", overwrite=True)  # whoever asks for that means the file that it leads to
    assert load(outside / "cat.safetensors").num_vectors == 2


def test_values_that_are_not_finite_are_never_written(tmp_path):
    with pytest.raises(EmbeddingError) as error:
        save(Embedding("x", {"clip_l": torch.full((1, 4), torch.inf)}), tmp_path / "x.pt")
    assert error.value.path == tmp_path / "x.pt"
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_embeddings_say_why(tmp_path, monkeypatch):
    (tmp_path / "empty.pt").touch()
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html></html>")
    reasons = {"no.pt": "it does not exist", "": "it is not a file", "empty.pt": "it is empty", "page.pt": "it is a web page"}
    for name, reason in reasons.items():
        with pytest.raises(EmbeddingError) as error:
            load(tmp_path / name)
        assert (error.value.path, error.value.reason.startswith(reason)) == (tmp_path / name, True)
        assert str(error.value) == f"{tmp_path / name}: {error.value.reason}"
        assert isinstance(error.value, UnknownLayoutError) == (name == "page.pt")
    monkeypatch.setattr(files, "MAX_READ_BYTES", 2**20)
    (tmp_path / "big.pt").write_bytes(b"\x80" * (2**20 + 1))
    with pytest.raises(EmbeddingError, match="LoRA or a checkpoint"):
        load(tmp_path / "big.pt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for call in (load, files.file_sha256):
        with pytest.raises(EmbeddingError) as error:
            call(tmp_path / "pipe.pt")
        assert error.value.path == tmp_path / "pipe.pt"
    seen = inspect_file(tmp_path / "pipe.pt")
    assert (seen.kind, seen.sha256) == ("unchecked", "")


def test_describe_tells_all_and_a1111s_hash(tmp_path):
    path = save(CAT, tmp_path / "cat.safetensors")
    info = describe(path)
    assert (info.layout, info.family, info.widths, info.num_vectors, info.dtype) == ("safetensors", "SD1", {"clip_l": 768}, 2, "fp32")
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info.a1111_hash == info.sha256[:12]
    assert (info.size, info.stored_name, info.provenance.step) == (path.stat().st_size, "cat", 5)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="access is not denied to this user")
def test_a_folder_that_nobody_may_enter_is_an_embedding_error(tmp_path: Path) -> None:
    """The rescue of a run's vectors depends on it: it catches this error only."""
    closed = tmp_path / "closed"
    (closed / "folder").mkdir(parents=True)
    closed.chmod(0)
    try:
        with pytest.raises(EmbeddingError, match="access is not allowed"):
            write_atomic(closed / "folder" / "cat.safetensors", b"x", overwrite=True)
    finally:
        closed.chmod(0o700)


def test_a_folder_that_is_missing_or_a_file_is_an_embedding_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("file", "missing"):
        with pytest.raises(EmbeddingError, match="does not exist; make it first"):
            write_atomic(tmp_path / name / "cat.safetensors", b"x")
