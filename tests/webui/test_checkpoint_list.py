"""The standalone program's list of checkpoints: files of every ending and folders, each under a name of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.checkpoint_kinds import KINDS
from tests.support.diffusers_folders import copy_of_folder
from textual_inversion.errors import CheckpointError
from textual_inversion.hosts.standalone.adapter import StandaloneHost

CKPT = "`.ckpt` of `torch.save` with `state_dict`"


def host_with(data: Path) -> StandaloneHost:
    folder = data / "checkpoints"
    folder.mkdir(parents=True)
    path = KINDS[CKPT].make(folder)
    for name in ("both.ckpt", "both.safetensors", "Alone.PT"):
        shutil.copy(path, folder / name)
    path.unlink()
    copy_of_folder(folder / "folder-v1.5")
    (folder / "pictures").mkdir()
    (folder / "notes.txt").write_text("x")
    return StandaloneHost(data)


def test_files_and_folders_are_listed_by_names_of_their_own(tmp_path: Path) -> None:
    host = host_with(tmp_path)
    assert host.checkpoints() == ["tiny", "tiny-sd2", "tiny-sdxl", "Alone", "both", "both.ckpt", "folder-v1.5"]
    for name, path in (("Alone", "Alone.PT"), ("both", "both.safetensors"), ("both.ckpt", "both.ckpt"), ("folder-v1.5", "folder-v1.5")):
        host.choose_checkpoint(name)
        assert (host.checkpoint().name, host.checkpoint().path) == (name, tmp_path / "checkpoints" / path)


def test_what_is_no_checkpoint_is_refused_and_the_choice_kept(tmp_path: Path) -> None:
    host = host_with(tmp_path)
    host.choose_checkpoint("both")
    (tmp_path / "checkpoints" / "page.ckpt").write_text("<!DOCTYPE html>")
    with pytest.raises(CheckpointError, match="web page"):
        host.choose_checkpoint("page")
    assert host.checkpoint().name == "both"


def test_a_folder_given_at_the_start_is_chosen(tmp_path: Path) -> None:
    path = copy_of_folder(tmp_path / "given-v2")
    host = StandaloneHost(tmp_path / "data", path)
    assert (host.checkpoint().name, host.checkpoint().path) == ("given-v2", path)
    assert host.checkpoints() == ["tiny", "tiny-sd2", "tiny-sdxl", "given-v2"]
