"""Fetches one file from the web, and goes on where an earlier try ended."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from textual_inversion.errors import InstallError
from textual_inversion.files import open_regular, os_error_text, read_regular, remove_quietly, replace_file
from textual_inversion.install.addresses import shown
from textual_inversion.install.web import Answer, Web, reason_of

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

MOST_BYTES = 256 * 2**20  # a whole token table with one learned row, as some programs save it, has 150 MB
Progress = Callable[[int, int], None]

_BLOCK = 2**16
_TRIES = 4
_PREFIX = ".ti-install-"
_KEPT_SECONDS = 7 * 24 * 3600.0  # that the beginning of a file is kept for going on
_PAUSE = 1.0  # seconds before the first new try after a cut connection
_PAGE = re.compile(rb"\s*(?:<!--.*?-->\s*)?<(?:!doctype html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(rb"<title[^>]*>(.{1,200}?)</title>", re.IGNORECASE | re.DOTALL)
_RANGE = re.compile(r"bytes (?P<begin>\d{1,18})-\d+/(?P<size>\d{1,18}|\*)")
_ALL = re.compile(r"bytes \*/(?P<size>\d{1,18})")


@dataclass(frozen=True)
class Fetched:
    """A file that was fetched.

    Attributes:
        path: where it lies, under a name that no program takes for an embedding.
        name: its name, as the server or the address says; may be empty.
    """

    path: Path
    name: str

    def remove(self) -> None:
        """Delete it, with what was kept for going on."""
        remove_quietly(self.path)
        remove_quietly(_note_of(self.path))


def remove_old(folder: Path) -> None:
    """Delete what downloads have left in `folder` for more than a week."""
    with suppress(OSError), os.scandir(folder) as entries:
        for left in [entry for entry in entries if entry.name.startswith(_PREFIX)]:
            with suppress(OSError):
                if time.time() - left.stat(follow_symlinks=False).st_mtime > _KEPT_SECONDS:
                    os.unlink(left.path)


@contextmanager
def alone(address: str, folder: Path) -> Iterator[None]:
    """Keep other programs from fetching `address` into `folder` meanwhile, because they would write the same file.

    Raises:
        InstallError: another program fetches it, or the folder cannot be written to.
    """
    path = _part_of(folder, address).with_suffix(".lock")
    try:
        file = open_regular(path, "ab")
    except OSError as error:
        raise InstallError(f"{folder}: {os_error_text(error)}.", path=folder) from error
    try:
        with file:
            if not _is_locked(file, path):
                raise InstallError(f"{shown(address)} is being fetched already; wait until that has ended.")
            try:
                yield
            finally:
                remove_quietly(path)
    finally:
        if sys.platform == "win32":
            remove_quietly(path)  # which Windows allows once nobody has it open


def _is_locked(file: BinaryIO, path: Path) -> bool:
    """Lock the open file; the system ends the lock with the program. True also on network file systems that have no locks."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))  # another program may have deleted it before it was locked
    except OSError:
        return False


def _part_of(folder: Path, address: str) -> Path:
    return folder / f"{_PREFIX}{hashlib.sha256(address.encode()).hexdigest()[:16]}.part"


def fetch(
    web: Web,
    address: str,
    folder: Path,
    *,
    typed: bool = False,
    token: str = "",
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Fetched:
    """Fetch the file at `address` into `folder` as `.ti-install-….part`.

    After a cut connection, an interruption or the end of the program the next call goes on where this one ended, if the server
    says that its file is still the same.

    Args:
        typed, token: as for `Web.open`.
        progress: called with bytes done and bytes in all; 0 in all where the server does not say.

    Raises:
        InstallError: it cannot be fetched, is a web page, is larger than 256 MB, was cut again and again, or was stopped.
    """
    path = _part_of(folder, address)
    transfer = _Transfer(address, path, progress or (lambda done, total: None), should_stop or (lambda: False))
    for attempt in range(1, _TRIES + 1):
        cut = ""
        try:
            with web.open(address, typed=typed, token=token, headers=transfer.wanted()) as answer:
                if transfer.take(answer):
                    return Fetched(path, _file_name(answer))
                cut = "the connection was cut"
        except http.client.HTTPException as error:
            cut = reason_of(error)
        except OSError as error:
            if error.filename is not None or error.errno in _DISK_ERRORS:
                raise InstallError(f"{path.parent}: {os_error_text(error)}.", path=path.parent) from error
            cut = reason_of(error)
        if attempt < _TRIES:
            web.pause(_PAUSE * attempt)
    done = f"after {_size(transfer.done)}" + (f" of {_size(transfer.total)}" if transfer.total else "")
    raise InstallError(f"{shown(address)} could not be read to its end: {cut} {done}, {_TRIES} times; start it again to go on from there.")


_DISK_ERRORS = (28, 122, 27)  # disk full, over quota, file too large


@dataclass
class _Transfer:
    """One file on its way."""

    address: str
    path: Path
    progress: Progress
    should_stop: Callable[[], bool]
    done: int = 0
    total: int = 0
    validator: str = ""  # ETag or date of the file that the first `done` bytes are of

    def wanted(self) -> dict[str, str]:
        """Headers that ask for the rest of the file, or for all of it."""
        self.done, self.validator = self._kept()
        return {"Range": f"bytes={self.done}-", "If-Range": self.validator} if self.done else {}

    def _kept(self) -> tuple[int, str]:
        """Bytes that are here, and of which file."""
        try:
            if os.path.islink(self.path):
                raise ValueError("of unknown origin")
            note = json.loads(read_regular(_note_of(self.path), 2**16))
            size, validator = self.path.stat().st_size, note["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            remove_quietly(self.path)
            return 0, ""
        return (size, validator) if isinstance(validator, str) and validator and "\n" not in validator else (0, "")

    def take(self, answer: Answer) -> bool:
        """Write what the server sends; True when the file is complete, False when it is not and is to be asked for again."""
        if answer.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            whole = _ALL.fullmatch(answer.headers.get("Content-Range", ""))
            if whole and int(whole["size"]) == self.done:
                return True
            return self._forget()
        if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
            part = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if not part or int(part["begin"]) != self.done or _validator(answer) not in ("", self.validator):
                return self._forget()
        else:
            self.done = 0
        self._check(answer)
        validator = _validator(answer) or (self.validator if self.done else "")  # the old one is that of another file
        replace_file(_note_of(self.path), json.dumps({"validator": validator}).encode(), durable=False)
        with open_regular(self.path, "ab" if self.done else "wb") as file:
            while block := answer.read(_BLOCK):
                if not self.done and _PAGE.match(block):
                    self._refuse(_page_sentence(answer, block, self.address))
                file.write(block)
                self.done += len(block)
                if self.done > MOST_BYTES:
                    self._refuse(_too_large(self.address, self.done))
                self.progress(self.done, self.total)
                if self.should_stop():
                    raise InstallError(f"The download of {shown(self.address)} was stopped; start it again to go on.")
        return self.done >= self.total if self.total else True

    def _check(self, answer: Answer) -> None:
        """Refuse a page, what is too large, and what was packed on the way."""
        length = answer.headers.get("Content-Length", "")
        self.total = self.done + int(length) if re.fullmatch(r"[0-9]{1,18}", length) else 0
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            self._refuse(f"{shown(self.address)} is sent packed although that was not wanted; fetch it with your browser.")
        if answer.is_page:
            self._refuse(_page_sentence(answer, answer.read(_BLOCK), self.address))
        if self.total > MOST_BYTES:
            self._refuse(_too_large(self.address, self.total))

    def _forget(self) -> bool:
        remove_quietly(_note_of(self.path))
        remove_quietly(self.path)
        return False

    def _refuse(self, sentence: str) -> None:
        self._forget()
        raise InstallError(sentence)


def _validator(answer: Answer) -> str:
    """What tells a file from another at the same address: a strong ETag, else its date; empty where there is neither."""
    tag = answer.headers.get("ETag", "").strip()
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "").strip()


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _page_sentence(answer: Answer, begin: bytes, address: str) -> str:
    found = _TITLE.search(begin)
    title = " ".join(found[1].decode("utf-8", "replace").split()) if found else ""
    called = f" (“{title}”)" if title else ""
    moved = "" if urlsplit(answer.address).path == urlsplit(address).path else f", {shown(answer.address)}"
    return (
        f"{shown(address)} gives a web page{called}{moved} in place of a file, perhaps because one has to log in or press a button there; "
        "fetch the file with your browser, and give the file."
    )


def _too_large(address: str, size: int) -> str:
    limit = f"an embedding has some kilobytes and is fetched up to {_size(MOST_BYTES)}"
    return f"{shown(address)} has {_size(size)}; {limit}, so this is a LoRA, a checkpoint or an archive."


def _size(count: int) -> str:
    return f"{count / 2**20:.0f} MB" if count >= 10 * 2**20 else f"{count / 2**10:.0f} KB" if count >= 2**10 else f"{count} bytes"


def _file_name(answer: Answer) -> str:
    """The file's name without a folder, as the server says, else from the address; empty where neither has one."""
    header = Message()
    header["Content-Disposition"] = _plain_header(answer.headers.get("Content-Disposition", ""))
    name: Any = header.get_filename() or unquote(urlsplit(answer.address).path)
    return re.split(r"[/\\]", str(name).strip())[-1].strip()


def _plain_header(text: str) -> str:
    """A header's text; names are often sent as UTF-8 bytes, which Python reads as Latin-1."""
    with suppress(UnicodeError):
        text = text.encode("latin-1").decode("utf-8")
    return " ".join(text.split())
