"""Scanning a folder, moving dangerous files aside and converting honest ones."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from textual_inversion.audit import Kind
from textual_inversion.audit.scan import ScannedFile, quarantine, scan_folder, to_safetensors
from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import ConfigError, EmbeddingError
from textual_inversion.formats import load, save

ATTACK = pickle.dumps(print)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with one file of each kind, some of them in subfolders."""
    top = tmp_path / "embeddings"
    (top / "sub" / "deep").mkdir(parents=True)
    save(Embedding("good", {"clip_l": torch.ones(1, 768)}), top / "good.safetensors")
    save(Embedding("old", {"clip_l": torch.ones(2, 768)}, Provenance(step=7)), top / "sub" / "old.pt")
    (top / "sub" / "deep" / "evil.pt").write_bytes(ATTACK)
    (top / "page.pt").write_bytes(b"<html>not found</html>")
    (top / "empty.bin").write_bytes(b"")
    (top / "notes.txt").write_bytes(ATTACK)
    return top


def scanned(folder: Path) -> dict[str, ScannedFile]:
    return {str(file.path.relative_to(folder)): file for file in scan_folder(folder)}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_file_has_its_verdict_and_nothing_is_touched(folder):
    before = everything(folder)
    kinds = {name: file.kind for name, file in scanned(folder).items()}
    assert kinds == {
        "good.safetensors": "ok",
        "sub/old.pt": "ok",
        "sub/deep/evil.pt": "unsafe",
        "page.pt": "not an embedding",
        "empty.bin": "damaged",
    }
    assert everything(folder) == before
    assert scanned(folder)["sub/old.pt"].embeddings[0].info.num_vectors == 2
    assert [name for name, file in scanned(folder).items() if file.convertible] == ["sub/old.pt"]


def test_previews_are_ordinary_pictures(folder):
    Image.new("RGB", (64, 64), (200, 30, 90)).save(folder / "good.preview.png")
    file = scanned(folder)["good.preview.png"]
    assert (file.kind, file.ordinary, file.dangerous) == ("not an embedding", True, False)


def test_progress_counts_every_file(folder):
    calls = []
    list(scan_folder(folder, lambda *values: calls.append(values)))
    assert [done for done, _, _ in calls] == list(range(5))
    assert {total for _, total, _ in calls} == {5}


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    for path in (tmp_path / "nowhere", "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError) as error:
            list(scan_folder(path))
        assert error.value.path == Path(path)


def test_files_of_a_folder_that_vanishes_while_it_is_scanned_are_unchecked(folder):
    scanning = scan_folder(folder)
    first = next(scanning)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    rest = list(scanning)
    assert first.kind == "damaged"
    assert [file.kind for file in rest] == ["unchecked"] * 4
    assert all("does not exist" in file.verdict for file in rest)


def test_a_subfolder_that_cannot_be_listed_is_unchecked(folder, monkeypatch):
    real = os.scandir

    def refuses(path):
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuses)
    file = scanned(folder)["sub/deep"]
    assert (file.kind, file.verdict) == ("unchecked", "unchecked: the folder cannot be listed: Permission denied.")


@pytest.mark.skipif(os.name != "posix", reason="POSIX has pipes")
def test_a_pipe_and_a_link_to_nothing_do_not_stop_it(folder):
    os.mkfifo(folder / "pipe.pt")
    (folder / "loop.pt").symlink_to("loop.pt")
    (folder / "dangling.pt").symlink_to("nowhere.pt")
    (folder / "sub" / "round").symlink_to(folder)
    found = scanned(folder)
    assert {found[name].kind for name in ("pipe.pt", "loop.pt", "dangling.pt")} == {"unchecked"}
    assert len(found) == 8


@pytest.mark.skipif(os.name != "posix", reason="Windows allows no such names")
def test_strange_names_are_files_like_others(folder):
    for name in ("a:b<c>.pt", "🐱 cat.pt", "\x1b[2J.pt", "x" * 240 + ".pt", "...pt", "new\nline.pt", os.fsdecode(b"\xff\xfe.pt")):
        (folder / name).write_bytes(ATTACK)
        file = scanned(folder)[name]
        assert file.kind == "unsafe"
        moved = quarantine(file)
        assert moved.read_bytes() == ATTACK
        assert moved.name.endswith(".unsafe")
        assert not (folder / name).exists()


# quarantine -----------------------------------------------------------------------------------------------------------


def test_a_dangerous_file_is_moved_with_its_subfolder_under_a_name_that_no_program_loads(folder):
    before = everything(folder)
    moved = quarantine(scanned(folder)["sub/deep/evil.pt"])
    assert moved == folder / "quarantine" / "sub" / "deep" / "evil.pt.unsafe"
    assert moved.read_bytes() == ATTACK
    after = everything(folder)
    before["quarantine/sub/deep/evil.pt.unsafe"] = before.pop("sub/deep/evil.pt")
    assert after == before
    assert "quarantine" not in str(list(scanned(folder)))


def test_an_optimizers_state_is_judged_too_and_never_converted(folder):
    torch.save({"hash": 1, "optimizer_state_dict": {"state": {}, "param_groups": []}}, folder / "old.pt.optim")
    torch.save({"string_to_param": {"*": torch.ones(1, 768)}}, folder / "odd.pt.optim")
    (folder / "evil.pt.optim").write_bytes(ATTACK)
    found = scanned(folder)
    kinds = {name: (found[name].kind, found[name].dangerous, found[name].convertible) for name in found if name.endswith(".optim")}
    assert kinds == {
        "old.pt.optim": ("not an embedding", False, False),
        "odd.pt.optim": ("ok", False, False),
        "evil.pt.optim": ("unsafe", True, False),
    }
    assert quarantine(found["evil.pt.optim"]) == folder / "quarantine" / "evil.pt.optim.unsafe"


def test_quarantine_never_overwrites(folder):
    for number, ending in enumerate(["", "-2", "-3"]):
        (folder / "evil.pt").write_bytes(ATTACK + bytes([number]))
        moved = quarantine(scanned(folder)["evil.pt"])
        assert moved.name == f"evil.pt{ending}.unsafe"
        assert moved.read_bytes() == ATTACK + bytes([number])
    assert len(list((folder / "quarantine").iterdir())) == 3


@pytest.mark.parametrize("name", ["good.safetensors", "page.pt", "empty.bin"])
def test_a_file_that_is_not_dangerous_is_not_moved(folder, name):
    if name == "empty.bin":
        assert not scanned(folder)[name].dangerous
    with pytest.raises(EmbeddingError) as error:
        quarantine(scanned(folder)[name])
    assert error.value.path == folder / name
    assert (folder / name).exists()


def test_a_file_that_changed_since_it_was_judged_is_left_alone(folder):
    file = scanned(folder)["sub/deep/evil.pt"]
    save(Embedding("x", {"clip_l": torch.ones(1, 768)}), folder / "sub" / "deep" / "evil.pt", overwrite=True)
    with pytest.raises(EmbeddingError, match="changed since"):
        quarantine(file)
    (folder / "sub" / "deep" / "evil.pt").unlink()
    with pytest.raises(EmbeddingError) as error:
        quarantine(file)
    assert error.value.path == file.path


def test_links_are_never_followed_to_move_a_file(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "evil.pt").write_bytes(ATTACK)
    (folder / "link.pt").symlink_to(outside / "evil.pt")
    (folder / "linked").symlink_to(outside)
    files = scanned(folder)
    for name, words in (("link.pt", "it is a link to"), ("linked/evil.pt", "outside of the scanned folder")):
        assert files[name].kind is Kind.UNSAFE
        with pytest.raises(EmbeddingError, match=words) as error:
            quarantine(files[name])
        assert error.value.path == folder / name
    assert (outside / "evil.pt").read_bytes() == ATTACK
    assert (folder / "link.pt").is_symlink()
    assert not (folder / "quarantine").exists()


def test_another_disk_gets_a_copy_before_the_original_goes(folder, tmp_path, monkeypatch):
    def other_disk(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "replace", other_disk)
    moved = quarantine(scanned(folder)["sub/deep/evil.pt"], tmp_path / "elsewhere")
    assert moved == tmp_path / "elsewhere" / "sub" / "deep" / "evil.pt.unsafe"
    assert moved.read_bytes() == ATTACK
    assert not (folder / "sub" / "deep" / "evil.pt").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_file_that_cannot_be_moved_stays_and_nothing_half_done_is_left(folder, monkeypatch, number):
    def refuses(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuses)
    with pytest.raises(EmbeddingError, match=os.strerror(number)):
        quarantine(scanned(folder)["sub/deep/evil.pt"])
    assert (folder / "sub" / "deep" / "evil.pt").read_bytes() == ATTACK
    assert not list(folder.rglob("*.unsafe"))


def test_a_quarantine_that_is_a_file_is_refused(folder, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(EmbeddingError) as error:
        quarantine(scanned(folder)["sub/deep/evil.pt"], tmp_path / "file")
    assert error.value.path == folder / "sub" / "deep" / "evil.pt"
    assert (tmp_path / "file").read_bytes() == b"mine"


# to safetensors -------------------------------------------------------------------------------------------------------


def test_an_honest_pickle_is_written_beside_itself(folder):
    before = everything(folder)
    (path,) = to_safetensors(scanned(folder)["sub/old.pt"])
    assert path == folder / "sub" / "old.safetensors"
    assert torch.equal(load(path).vectors["clip_l"], torch.ones(2, 768))
    assert load(path).provenance.step == 7
    after = everything(folder)
    del after["sub/old.safetensors"]
    assert after == before


def test_replacing_moves_the_original_to_where_no_program_loads_it_also_in_a_second_run(folder):
    original = (folder / "sub" / "old.pt").read_bytes()
    to_safetensors(scanned(folder)["sub/old.pt"])
    assert to_safetensors(scanned(folder)["sub/old.pt"]) == []  # it is there
    assert to_safetensors(scanned(folder)["sub/old.pt"], replace=True) == []
    assert (folder / "originals" / "sub" / "old.pt.original").read_bytes() == original
    assert {name: file.kind for name, file in scanned(folder).items() if "old" in name} == {"sub/old.safetensors": "ok"}


@pytest.mark.parametrize("taken", [False, True])
def test_the_optimizers_state_goes_by_the_new_name_unless_that_is_taken(folder, taken):
    state, renamed = folder / "sub" / "old.pt.optim", folder / "sub" / "old.safetensors.optim"
    state.write_bytes(b"state")
    if taken:
        renamed.write_bytes(b"another")
    to_safetensors(scanned(folder)["sub/old.pt"])
    assert state.read_bytes() == b"state"
    to_safetensors(scanned(folder)["sub/old.pt"], replace=True)
    assert renamed.read_bytes() == (b"another" if taken else b"state")
    assert state.exists() is taken


def test_another_file_of_that_name_is_kept_and_so_is_the_original(folder):
    other = save(Embedding("old", {"clip_l": torch.zeros(1, 768)}), folder / "sub" / "old.safetensors").read_bytes()
    for replace in (False, True):
        with pytest.raises(EmbeddingError) as error:
            to_safetensors(scanned(folder)["sub/old.pt"], replace=replace)
        assert error.value.path == folder / "sub" / "old.safetensors"
    assert (folder / "sub" / "old.safetensors").read_bytes() == other
    assert (folder / "sub" / "old.pt").exists()


def test_several_words_become_a_file_each(folder):
    torch.save({"<cat/toy>": torch.ones(768), "dog": torch.zeros(2, 768)}, folder / "learned.bin")
    written = to_safetensors(scanned(folder)["learned.bin"], replace=True)
    assert sorted(path.name for path in written) == ["cat_toy.safetensors", "dog.safetensors"]
    assert load(folder / "cat_toy.safetensors").num_vectors == 1
    assert load(folder / "dog.safetensors").num_vectors == 2
    assert not (folder / "learned.bin").exists()


def test_a_full_disk_while_converting_keeps_the_original(folder, monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = scanned(folder)["sub/old.pt"]
    monkeypatch.setattr(os, "fsync", refuses)
    before = everything(folder)
    with pytest.raises(EmbeddingError) as error:
        to_safetensors(file, replace=True)
    assert error.value.path == folder / "sub" / "old.safetensors"
    assert everything(folder) == before


@pytest.mark.parametrize("name", ["good.safetensors", "page.pt", "sub/deep/evil.pt"])
def test_other_files_are_not_converted(folder, name):
    with pytest.raises(EmbeddingError) as error:
        to_safetensors(scanned(folder)[name])
    assert error.value.path == folder / name


def test_values_that_are_not_finite_are_not_converted(folder):
    torch.save({"string_to_param": {"*": torch.full((1, 768), float("nan"))}}, folder / "nan.pt")
    file = scanned(folder)["nan.pt"]
    assert (file.kind, file.convertible, file.dangerous) == ("damaged", False, False)
