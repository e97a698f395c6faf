"""Helpers for files on disk: replace a file atomically, detect changes, explain system errors. Independent of file formats."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be deleted anyway
    fcntl = None  # type: ignore[assignment]

_BLOCK = 2**20  # bytes read at a time
_TEMPORARY = re.compile(r"\.ti-[0-9a-f]{16}\.tmp")
_LOOK_SECONDS, _YOUNG_SECONDS = 60.0, 10.0
_looked_at: dict[Path, float] = {}  # folder -> when it was looked through for remains
_NO_FILE = "it is a pipe, a device or a socket, not a file"


class FileStamp(NamedTuple):
    """Size, time and inode of a file. Two equal stamps mean an unchanged file."""

    size: int  # bytes
    modified: int  # nanoseconds since 1970
    inode: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileStamp | None:
        """The file's current stamp; None when the file is missing or the system denies access."""
        try:
            return cls.from_status(os.stat(path))
        except OSError:
            return None

    @classmethod
    def from_status(cls, status: os.stat_result) -> FileStamp:
        """The stamp from the status of `os.stat` or of a directory entry."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


def open_regular(path: str | os.PathLike[str], mode: str = "rb", **text: Any) -> Any:
    """Open a regular file. Opening a pipe would wait for its other end for ever, and a device may have no end.

    Args:
        mode: as for `open`.
        text: `encoding` and `newline`, as for `open`.

    Raises:
        IsADirectoryError: it is a folder. OSError: it is a pipe, a device or a socket, is missing, or access is denied.
        ValueError: there is a null character in the path.
    """
    return open(path, mode, opener=_open_regular, **text)


def read_regular(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """The contents of a regular file.

    Args:
        most: the largest number of bytes that such a file may have; None = any.

    Raises:
        OSError: as `open_regular`, or the file has more bytes.
    """
    with open_regular(path) as file:
        data = file.read() if most is None else file.read(most + 1)
    if most is not None and len(data) > most:
        size = f"{most >> 20} MB" if most >= _BLOCK else f"{most >> 10} KB"
        raise OSError(errno.EFBIG, f"it has more than {size}", os.fspath(path))
    return data


def _open_regular(path: str, flags: int) -> int:
    try:
        handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket; a pipe without a reader
            raise OSError(errno.EINVAL, _NO_FILE, path) from error
        raise
    kind = os.fstat(handle).st_mode
    if stat.S_ISREG(kind):
        return handle
    os.close(handle)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, _NO_FILE, path)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The file's sha256 in 64 hex digits; raises OSError."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def short_hash(sha256: str) -> str:
    """The first 12 hex digits of a sha256, as A1111 writes it in an infotext's `TI hashes` and on cards."""
    return sha256[:12]


def replace_file(
    path: str | os.PathLike[str],
    content: bytes | Callable[[BinaryIO], object],
    *,
    overwrite: bool = True,
    durable: bool = True,
    fixed_name: bool = False,
    follow_links: bool = True,
) -> None:
    """Write a file. At any moment `path` holds either the previous contents or all of `content`.

    Args:
        path: the file.
        content: the bytes, or a function that writes them to the open file.
        overwrite: replace a file that is there.
        durable: wait until the disk has the bytes, so that they survive a loss of power. Without this, writing
            many small files is much faster, but a file may be empty after a crash of the machine.
        fixed_name: name the temporary file after the target, so that the next run overwrites the remains of a killed run. Only one
            program may write this target at a time.
        follow_links: a symbolic link stays a link, and the file that it points to is replaced; otherwise the link itself is replaced,
            so that a link of unknown origin cannot redirect the write.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        OSError: no such folder, disk full, not allowed. The incomplete file is removed if the system allows it.
    """
    if not overwrite and os.path.lexists(path):  # also a broken link: its target may come from an unpacked archive
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
    target = Path(os.path.realpath(path)) if follow_links else Path(path)
    temporary = target.parent / (f".{target.name}.part" if fixed_name else f".ti-{secrets.token_hex(8)}.tmp")
    try:
        # Not tempfile, whose mode 0600 hides the file from other users of the WebUI.
        with open(temporary, "wb" if fixed_name else "xb") as file:
            _mark_as_in_use(file)
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if fcntl:
                _put_in_place(temporary, target, overwrite)  # before the file is closed, which ends the mark
        if not fcntl:
            _put_in_place(temporary, target, overwrite)
    except BaseException:
        remove_quietly(temporary)
        raise
    if durable:
        _sync_folder(target.parent)
        _remove_remains(target.parent)


def _mark_as_in_use(file: BinaryIO) -> None:
    """Lock a temporary file as long as it is open. Some network file systems have no locks; there the file's age protects it."""
    if fcntl:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_remains(folder: Path) -> None:
    """Delete the temporary files that killed programs have left in `folder`; looks at most once a minute, because folders may be large."""
    now = time.monotonic()
    if not fcntl or now - _looked_at.get(folder, -math.inf) < _LOOK_SECONDS:
        return
    _looked_at[folder] = now
    with suppress(OSError), os.scandir(folder) as entries:
        for left in [entry.path for entry in entries if _TEMPORARY.fullmatch(entry.name)]:
            with suppress(OSError), open_regular(left, "r+b") as file:
                if abs(time.time() - os.fstat(file.fileno()).st_mtime) > _YOUNG_SECONDS:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a program writes it
                    os.unlink(left)


def remove_quietly(path: str | os.PathLike[str]) -> None:
    """Delete a temporary file if possible. Ignores errors, because the error before the cleanup matters more."""
    try:
        os.unlink(path)
    except OSError:
        return


def os_error_text(error: OSError) -> str:
    """The system's reason and the remedy, as a clause without a full stop."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and try again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "access is not allowed; check the permissions, and that no other program holds the file"
    return os_error_words(error)


def os_error_words(error: Exception) -> str:
    """The system's own words for an error, such as `No such file or directory`, without a full stop."""
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")


def _put_in_place(temporary: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, fails if another program took the name meanwhile
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if os.path.lexists(target):  # a file system without hard links
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.replace(temporary, target)
    else:
        remove_quietly(temporary)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows cannot open a folder
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)
