"""Files of embeddings: bounded reading in parts, and writing that is all or nothing. Knows nothing of what is in them."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from textual_inversion.errors import EmbeddingError, NameTakenError

MAX_READ_BYTES = 64 * 2**20  # the largest known embeddings are a few MB; a LoRA with embeddings in it is read in parts
_HEAD_BYTES = 2**16  # most embeddings whole, so that they take one read


class FileBytes:
    """The bytes of an open file, or of `data` that is in memory already; each part is read when it is asked for.

    Attributes:
        size: bytes in all.
    """

    def __init__(self, data: bytes = b"", *, file: BinaryIO | None = None, size: int | None = None) -> None:
        self._head, self._file = data, file
        self.size = len(data) if size is None else size

    def read(self, begin: int, end: int) -> bytes:
        """The bytes from `begin` up to `end`, as many of them as there are.

        Raises:
            EmbeddingError: over 64 MB at once, or the file can no longer be read.
        """
        if end - begin > MAX_READ_BYTES:
            raise EmbeddingError(f"{(end - begin) // 2**20} MB of it would be needed; an embedding has at most {MAX_READ_BYTES // 2**20}.")
        if end <= len(self._head) or self._file is None:
            return self._head[begin:end]
        try:
            self._file.seek(begin)
            return self._file.read(max(0, end - begin))
        except OSError as error:
            raise EmbeddingError(f"it cannot be read: {_reason(error)}.") from error

    def all(self) -> bytes:
        """The whole file; raises `EmbeddingError` when that is over 64 MB."""
        if self.size > MAX_READ_BYTES:
            size, limit = self.size // 2**20, MAX_READ_BYTES // 2**20
            raise EmbeddingError(f"it has {size} MB; an embedding has at most {limit}, so this may be a LoRA or a checkpoint.")
        return self.read(0, self.size)


@contextmanager
def open_file(path: Path) -> Iterator[FileBytes]:
    """The file at `path`, open for reading until the context ends.

    Raises:
        EmbeddingError: missing, not a plain file, not readable, or empty; the message begins with the path.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_open_plain(path))
            head, size = file.read(_HEAD_BYTES), os.fstat(file.fileno()).st_size
        except FileNotFoundError as error:
            raise EmbeddingError(f"{path} does not exist; check the path.") from error
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            raise EmbeddingError(f"{path} cannot be read: {_reason(error)}.") from error
        if not head:
            raise EmbeddingError(f"{path} is empty; fetch or train it again.")
        yield FileBytes(head, file=file, size=max(size, len(head)))


def file_sha256(path: Path) -> str:
    """64 hex digits over the whole file at `path`; raises `EmbeddingError` when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with _open_plain(path) as file:
            while part := file.read(2**20):
                digest.update(part)
    except (OSError, ValueError) as error:
        raise EmbeddingError(f"{path} cannot be read: {_reason(error)}.") from error
    return digest.hexdigest()


def _open_plain(path: Path) -> BinaryIO:
    """The file, open for reading; raises `EmbeddingError` for what is no plain file, such as a pipe, which would wait for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise EmbeddingError(f"{path} is not a file; give the path of an embedding file.")
    return open(path, "rb")


def write_atomic(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write `data` to `path` so that the file there is always either the old one or the whole new one.

    Raises:
        NameTakenError: a file or a link is there and `overwrite` is false.
        EmbeddingError: no such folder, disk full, or not allowed; nothing half-written stays.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    if not target.parent.is_dir():
        raise EmbeddingError(f"{path} cannot be written because the folder {target.parent} does not exist; make it first.")
    if not overwrite and os.path.lexists(path):  # a link to nothing too: who unpacked it did not choose where it leads
        raise _taken(path)
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        _write_and_sync(temporary, data)
        _put_in_place(temporary, target, overwrite)
        _sync_folder(target.parent)
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        raise EmbeddingError(f"{path} was not written: {_reason(error)}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _taken(path: Path) -> NameTakenError:
    return NameTakenError(f"{path} exists; choose another name or allow overwriting (--overwrite).")


def _write_and_sync(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:  # not tempfile: its 0600 would hide the file from the WebUI's other users
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(temporary: Path, target: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(temporary, target)  # unlike a rename, fails if somebody took the name meanwhile
            return
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if os.path.lexists(target):  # a file system without hard links
                raise FileExistsError(errno.EEXIST, "exists", str(target)) from error
    os.replace(temporary, target)


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


def _reason(error: Exception) -> str:
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and try again"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "access is not allowed; check the permissions, and that no other program holds the file"
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")
