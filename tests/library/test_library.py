"""Libraries of embedding files: names, reasons, pictures and notes, and that nothing is read twice."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

import textual_inversion.library.catalog as library_module
from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats import save
from textual_inversion.library import EmbeddingLibrary
from textual_inversion.training.embedding_file import find_embedding

SD1 = {"clip_l": 768}
SDXL = {"clip_l": 768, "clip_g": 1280}


def _put(path: Path, widths: dict[str, int] = SD1, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(Embedding(path.stem, {key: torch.full((1, d), value) for key, d in widths.items()}), path, overwrite=True)


def _reasons(library: EmbeddingLibrary) -> dict[str, str]:
    return {str(entry.path): entry.reason for entry in library.entries() if not entry.usable}


def test_every_folder_and_its_subfolders_are_searched(tmp_path):
    _put(tmp_path / "a" / "cat.safetensors")
    _put(tmp_path / "a" / "deep" / "er" / "Dog.pt")
    _put(tmp_path / "b" / "ant.safetensors")
    _put(tmp_path / "a" / ".trash" / "old.safetensors")
    (tmp_path / "a" / "readme.md").write_text("no embedding")
    library = EmbeddingLibrary([tmp_path / "a", tmp_path / "b", tmp_path / "missing"])
    assert library.names() == ["ant", "cat", "Dog"]
    assert [entry.info.family for entry in library.entries()] == ["SD1"] * 3


def test_get_takes_any_capitals_and_of_twins_the_first(tmp_path):
    for value, name in enumerate(["Cat", "cat", "my (dog)"]):
        _put(tmp_path / f"{name}.safetensors", value=value)
    library = EmbeddingLibrary([tmp_path])
    assert [library.get(name).vectors["clip_l"][0, 0].item() for name in ("Cat", "my (dog)", "MY _DOG_")] == [0, 2, 2]
    with pytest.raises(EmbeddingError, match="prompts do not tell it apart from “Cat”"):
        library.get("cat")
    assert library.get("CAT").name == "Cat"


def test_an_accent_is_found_however_it_is_spelt(tmp_path):
    _put(tmp_path / "cafe\u0301.safetensors")
    library = EmbeddingLibrary([tmp_path])
    assert library.names() == ["cafe\u0301"]
    assert library.get("CAF\u00c9").name == "cafe\u0301"


def test_the_error_for_an_unknown_name_has_the_nearest_names(tmp_path):
    _put(tmp_path / "my-cat.safetensors")
    with pytest.raises(EmbeddingError, match=r"'my-cta'; the nearest are my-cat\."):
        EmbeddingLibrary([tmp_path]).get("my-cta")
    with pytest.raises(EmbeddingError):
        EmbeddingLibrary([]).get("x")


@pytest.mark.parametrize(
    ("made_for", "checkpoint", "reason"),
    [
        ({"clip_h": 1024}, SD1, "made for SD2: 1024 wide; this checkpoint takes 768."),
        (SD1, SDXL, "made for SD1: 768 wide; this checkpoint takes 768 + 1280."),
        (SDXL, SD1, "made for SDXL: 768 + 1280 wide; this checkpoint takes 768."),
        (SD1, SD1, ""),
        (SDXL, SDXL, ""),
        ({"clip_l": 64}, {"clip_h": 64}, ""),
    ],
)
def test_an_embedding_that_does_not_fit_says_what_it_was_made_for(tmp_path, made_for, checkpoint, reason):
    _put(tmp_path / "x.safetensors", made_for)
    library = EmbeddingLibrary([tmp_path], checkpoint)
    assert library.entries()[0].reason == reason
    if reason:
        with pytest.raises(EmbeddingError, match=r"'x' \(.*x\.safetensors\) cannot be used: made for") as error:
            library.get("x")
        assert error.value.path == tmp_path / "x.safetensors"
        library.set_width(made_for)
    assert library.get("x").widths == made_for


def test_a_file_that_cannot_be_read_is_listed_with_its_reason(tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"\x80\x02cos\nsystem\n.")
    entry = EmbeddingLibrary([tmp_path]).entries()[0]
    assert entry.info is None
    assert "os.system" in entry.reason


def test_of_two_files_with_one_name_the_first_folder_wins_then_the_shortest_path_then_the_alphabet(tmp_path):
    loser = _put(tmp_path / "b" / "cat.safetensors", value=2)
    winner = _put(tmp_path / "a" / "long" / "path" / "cat.safetensors", value=1)
    deeper = _put(tmp_path / "a" / "long" / "path" / "and" / "cat.safetensors", value=3)
    sibling = _put(tmp_path / "a" / "long" / "pbth" / "cat.safetensors", value=4)
    library = EmbeddingLibrary([tmp_path / "a", tmp_path / "b"])
    assert library.get("cat").vectors["clip_l"][0, 0] == 1
    assert set(_reasons(library)) == {str(loser), str(deeper), str(sibling)}
    assert all(str(winner) in reason for reason in _reasons(library).values())
    assert library.names() == ["cat"]


def test_the_file_that_training_writes_is_the_one_that_prompts_use(tmp_path):
    _put(tmp_path / "cat.pt", value=2)
    path = _put(tmp_path / "cat.safetensors", value=1)
    library = EmbeddingLibrary([tmp_path])
    assert find_embedding(tmp_path, "cat")[0] == path
    assert library.get("cat").vectors["clip_l"][0, 0] == 1


def test_a_file_that_was_written_over_is_judged_again_before_it_is_used(tmp_path):
    _put(tmp_path / "cat.safetensors")
    library = EmbeddingLibrary([tmp_path], SD1)
    assert library.get("cat").widths == SD1
    _put(tmp_path / "cat.safetensors", SDXL)
    with pytest.raises(EmbeddingError) as error:
        library.get("cat")
    assert error.value.path == tmp_path / "cat.safetensors"
    assert library.find("cat").info.family == "SDXL"
    _put(tmp_path / "cat.safetensors", value=3)
    library.rescan()
    assert library.get("cat").vectors["clip_l"][0, 0] == 3


def test_a_scan_in_another_thread_may_forget_a_file_at_any_time(tmp_path):
    _put(tmp_path / "cat.safetensors")
    library = EmbeddingLibrary([tmp_path])
    library.rescan()

    class Forgetful(dict):
        def __setitem__(self, key, value):
            """As if the scan came at once."""

    library._loaded = Forgetful()
    assert library.get("cat").num_vectors == 1


def test_a_file_that_cannot_be_used_does_not_keep_the_name_from_one_that_can(tmp_path):
    (tmp_path / "cat.pt").write_bytes(b"damaged")
    _put(tmp_path / "sub" / "cat.safetensors")
    _put(tmp_path / "dog.safetensors", SDXL)
    _put(tmp_path / "sub" / "dog.safetensors")
    library = EmbeddingLibrary([tmp_path], SD1)
    assert library.names() == ["cat", "dog"]
    assert library.get("dog").widths == SD1


def test_a_folder_inside_another_is_listed_once(tmp_path):
    _put(tmp_path / "sub" / "cat.safetensors")
    assert len(EmbeddingLibrary([tmp_path, tmp_path / "sub", tmp_path]).entries()) == 1


@pytest.mark.skipif(os.name != "posix", reason="making links needs rights on Windows")
def test_links_are_followed_and_loops_end(tmp_path):
    _put(tmp_path / "elsewhere" / "cat.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "self").symlink_to(folder)
    (folder / "nowhere.pt").symlink_to(tmp_path / "gone.pt")
    library = EmbeddingLibrary([folder])
    assert library.names() == ["cat"]
    assert "does not exist" in _reasons(library)[str(folder / "nowhere.pt")]


@pytest.mark.parametrize("picture", ["cat.png", "cat.preview.png", "cat.jpg", "CAT.Preview.WEBP"])
def test_the_picture_and_the_notes_beside_a_file_are_found(tmp_path, picture):
    _put(tmp_path / "cat.safetensors")
    (tmp_path / picture).touch()
    (tmp_path / "catalogue.png").touch()
    (tmp_path / "cat.txt").write_bytes("use at 0.8 – fine\n\xff".encode("latin-1", "replace"))
    entry = EmbeddingLibrary([tmp_path]).entries()[0]
    assert entry.preview == tmp_path / picture
    assert entry.notes.startswith("use at 0.8")


def test_without_picture_and_notes(tmp_path):
    _put(tmp_path / "cat.safetensors")
    entry = EmbeddingLibrary([tmp_path]).entries()[0]
    assert (entry.preview, entry.notes) == (None, "")


def test_only_new_and_changed_files_are_read_again(tmp_path, monkeypatch):
    read: list[str] = []
    describe = library_module.describe_all
    monkeypatch.setattr(library_module, "describe_all", lambda path: read.append(path.name) or describe(path))
    _put(tmp_path / "cat.safetensors")
    (tmp_path / "bad.pt").write_bytes(b"damaged")
    library = EmbeddingLibrary([tmp_path])
    library.rescan()
    library.rescan()
    assert sorted(read) == ["bad.pt", "cat.safetensors"]
    _put(tmp_path / "cat.safetensors", {"clip_h": 1024})
    _put(tmp_path / "new.safetensors")
    (tmp_path / "bad.pt").unlink()
    library.rescan()
    assert sorted(read[2:]) == ["cat.safetensors", "new.safetensors"]
    assert {entry.name: entry.info.family for entry in library.entries()} == {"cat": "SD2", "new": "SD1"}


def test_get_keeps_the_vectors_until_the_file_changes(tmp_path):
    path = _put(tmp_path / "cat.safetensors", value=1)
    library = EmbeddingLibrary([tmp_path])
    assert library.get("cat") is library.get("cat")
    _put(path, value=2)
    os.utime(path, ns=(1, 1))
    assert library.get("cat").vectors["clip_l"][0, 0] == 2
    path.unlink()
    with pytest.raises(EmbeddingError) as error:
        library.get("cat")
    assert error.value.path == path


def test_a_temporary_reason_is_not_remembered(tmp_path, monkeypatch):
    _put(tmp_path / "cat.safetensors")
    library = EmbeddingLibrary([tmp_path])

    def lost(path: Path) -> None:
        raise EmbeddingError(f"{path} cannot be read: network lost.") from OSError("network lost")

    with monkeypatch.context() as patch:
        patch.setattr(library_module, "describe_all", lost)
        assert "network lost" in library.entries()[0].reason
    library.rescan()
    assert library.names() == ["cat"]


def test_many_threads_see_whole_scans(tmp_path):
    for index in range(20):
        _put(tmp_path / f"e{index}.safetensors", {"clip_l": 8})
    library = EmbeddingLibrary([tmp_path])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for index in range(20):
                assert len(library.rescan()) == len(library.entries()) == 20
                assert library.get(f"E{index}").name == f"e{index}"
        except Exception as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
