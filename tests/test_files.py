"""Replacing a file whole, its stamp, and the words for a refusal, on a real file system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from textual_inversion import files
from textual_inversion.files import FileStamp, os_error_text, os_error_words, replace_file, sha256_of


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_new_file_holds_all_of_it_and_nothing_else_stays(tmp_path: Path, durable: bool, overwrite: bool) -> None:
    path = tmp_path / "new.bin"
    replace_file(path, b"all of it", durable=durable, overwrite=overwrite)
    assert path.read_bytes() == b"all of it"
    assert list(tmp_path.iterdir()) == [path]


def test_a_function_may_write_the_content(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", lambda file: file.write(b"written"))
    assert (tmp_path / "a").read_bytes() == b"written"


@pytest.mark.parametrize("fixed_name", [True, False])
@pytest.mark.parametrize("durable", [True, False])
def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path, durable: bool, fixed_name: bool) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old")

    def fails(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError) as error:
        replace_file(path, fails, durable=durable, fixed_name=fixed_name)
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_next_run_writes_over_what_a_killed_one_has_left(tmp_path: Path) -> None:
    (tmp_path / ".picture.png.part").write_bytes(b"half")
    replace_file(tmp_path / "picture.png", b"whole", durable=False, fixed_name=True)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        replace_file(path, b"other", overwrite=False)
    assert path.read_bytes() == b"mine"
    replace_file(path, b"other")
    assert path.read_bytes() == b"other"


def test_a_name_that_is_taken_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "race"
    with pytest.raises(FileExistsError):
        replace_file(path, lambda file: path.write_bytes(b"first"), overwrite=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refuse)
    replace_file(tmp_path / "a", b"a", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"a"
    with pytest.raises(FileExistsError):
        replace_file(tmp_path / "a", b"b", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    replace_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_that_is_not_followed_is_replaced(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "elsewhere").write_bytes(b"old")
    (tmp_path / "link").symlink_to("elsewhere")
    replace_file(tmp_path / "link", b"new", follow_links=False)
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"
    assert (tmp_path / "elsewhere").exists() == there
    assert not there or (tmp_path / "elsewhere").read_bytes() == b"old"


def test_a_link_to_nothing_is_not_written_through_unasked(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(FileExistsError):
        replace_file(tmp_path / "link", b"new", overwrite=False)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_missing_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "no" / "file", b"")


def test_the_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert FileStamp.of(path) is None
    path.write_bytes(b"one")
    first = FileStamp.of(path)
    assert first is not None
    assert first == FileStamp.of(path)
    assert first.size == 3
    replace_file(path, b"two")
    assert FileStamp.of(path) != first


@pytest.mark.skipif(os.name != "posix", reason="a folder without permissions is a matter of POSIX")
def test_no_stamp_where_the_system_does_not_let_us_look(tmp_path: Path) -> None:
    assert FileStamp.of(tmp_path / ("x" * 5000)) is None


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(code: int) -> None:
    assert "disk is full" in os_error_text(OSError(code, os.strerror(code)))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_missing_permission_is_named(code: int) -> None:
    assert "permissions" in os_error_text(OSError(code, os.strerror(code)))


def test_other_causes_are_the_systems_words() -> None:
    error = OSError(errno.EIO, "Input/output error.")
    assert os_error_text(error) == os_error_words(error) == "Input/output error"


@pytest.mark.skipif(os.name != "posix", reason="the system deletes no open files")
def test_what_killed_programs_have_left_is_deleted_and_what_is_being_written_stays(tmp_path: Path) -> None:
    left, young, busy = (tmp_path / f".ti-{letter * 16}.tmp" for letter in "abc")
    for path in (left, young, busy):
        path.write_bytes(b"half")
    others = tmp_path / ".0123456789abcdef.tmp"  # of another program
    others.write_bytes(b"theirs")
    with busy.open("r+b") as file:
        files._mark_as_in_use(file)
        for path in (left, busy, others):
            os.utime(path, (1, 1))
        replace_file(tmp_path / "new", b"new")
        assert {path.name for path in tmp_path.iterdir()} == {"new", young.name, busy.name, others.name}


@pytest.mark.skipif(os.name != "posix", reason="the system deletes no open files")
def test_pipes_and_links_with_such_a_name_stay_and_hang_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f".ti-{'a' * 16}.tmp")
    (tmp_path / "mine").write_bytes(b"mine")
    replace_file(tmp_path / "new", b"new")
    assert len(list(tmp_path.iterdir())) == 3
