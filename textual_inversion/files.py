"""Files on disk: replace one whole, tell whether one has changed, say in words why the system refused. Holds no format."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

_BLOCK = 2**20  # bytes read at a time


class FileStamp(NamedTuple):
    """What changes when a file is replaced or written to; two equal stamps mean the same bytes."""

    size: int  # bytes
    modified: int  # nanoseconds since 1970
    inode: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileStamp | None:
        """The stamp of the file now; None where there is no file, or where the system does not let us look."""
        try:
            return cls.from_status(os.stat(path))
        except OSError:
            return None

    @classmethod
    def from_status(cls, status: os.stat_result) -> FileStamp:
        """From the status that `os.stat` or a directory entry gives."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The file's sha256 in 64 hex digits; raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
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
    """Write a file so that `path` holds either what it held before or all of `content`.

    Args:
        path: the file.
        content: the bytes, or a function that writes them to the open file.
        overwrite: replace a file that is there.
        durable: wait until the disk has the bytes, so that they survive a loss of power. Without it many small files are written much
            faster, and a file may be empty after a crash of the machine.
        fixed_name: name the temporary file after the target, so that the next run writes over what a killed run has left. Only one
            program may write that target at a time.
        follow_links: a symbolic link stays a link, and the file that it points to is replaced; otherwise the link itself is replaced,
            so that nothing is written where a link of unknown origin leads.

    Raises:
        FileExistsError: something is there and `overwrite` is false.
        OSError: no such folder, disk full, not allowed; nothing half-written stays where the system lets us remove it.
    """
    if not overwrite and os.path.lexists(path):  # also a link to nothing: whoever unpacked it did not choose where it leads
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
    target = Path(os.path.realpath(path)) if follow_links else Path(path)
    temporary = target.parent / (f".{target.name}.part" if fixed_name else f".{secrets.token_hex(8)}.tmp")
    try:
        # Not tempfile, whose mode 0600 hides the file from other users of the WebUI.
        with open(temporary, "wb" if fixed_name else "xb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        _put_in_place(temporary, target, overwrite)
    except BaseException:
        remove_quietly(temporary)
        raise
    if durable:
        _sync_folder(target.parent)


def remove_quietly(path: str | os.PathLike[str]) -> None:
    """Delete a temporary file if that can be done; the error that led here matters more than this one."""
    try:
        os.unlink(path)
    except OSError:
        return


def os_error_text(error: OSError) -> str:
    """Why the system refused, and what helps, as a clause without a full stop."""
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
        os.link(temporary, target)  # unlike a rename, fails if somebody took the name meanwhile
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
