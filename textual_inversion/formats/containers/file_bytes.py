"""Reads the bytes of a file on demand, in parts of limited size."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from textual_inversion.errors import EmbeddingError, NameTakenError
from textual_inversion.files import open_regular, os_error_text, os_error_words, replace_file, sha256_of

MAX_READ_BYTES = 64 * 2**20  # the largest known embeddings are a few MB; a LoRA with embeddings in it is read in parts
_HEAD_BYTES = 2**16  # most embeddings are smaller, so one read is enough


class FileBytes:
    """The bytes of an open file, read on demand, or the bytes of `data` in memory.

    Attributes:
        size: total number of bytes.
    """

    def __init__(self, data: bytes = b"", *, file: BinaryIO | None = None, size: int | None = None) -> None:
        self._head, self._file = data, file
        self.size = len(data) if size is None else size

    def read(self, begin: int, end: int) -> bytes:
        """The bytes from `begin` up to `end`; fewer where the file ends earlier.

        Raises:
            EmbeddingError: the part is over 64 MB, or the file can no longer be read.
        """
        if end - begin > MAX_READ_BYTES:
            raise EmbeddingError(f"{(end - begin) // 2**20} MB of it would be needed; an embedding has at most {MAX_READ_BYTES // 2**20}.")
        if end <= len(self._head) or self._file is None:
            return self._head[begin:end]
        try:
            self._file.seek(begin)
            return self._file.read(max(0, end - begin))
        except OSError as error:
            raise _unreadable(error) from error

    def all(self) -> bytes:
        """The whole file; raises `EmbeddingError` when it is over 64 MB."""
        if self.size > MAX_READ_BYTES:
            size, limit = self.size // 2**20, MAX_READ_BYTES // 2**20
            raise EmbeddingError(f"it has {size} MB; an embedding has at most {limit}, so this may be a LoRA or a checkpoint.")
        return self.read(0, self.size)


@contextmanager
def open_file(path: Path) -> Iterator[FileBytes]:
    """Open the file at `path` for reading until the context ends. An `EmbeddingError` raised inside the context gets this path.

    Raises:
        EmbeddingError: the file is missing, not a plain file, not readable, or empty.
    """
    try:
        with ExitStack() as stack:
            try:
                _check_plain(path)
                file = stack.enter_context(open_regular(path))
                head, size = file.read(_HEAD_BYTES), os.fstat(file.fileno()).st_size
            except FileNotFoundError as error:
                raise EmbeddingError("it does not exist; check the path.") from error
            except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
                raise _unreadable(error) from error
            if not head:
                raise EmbeddingError("it is empty; fetch or train it again.")
            yield FileBytes(head, file=file, size=max(size, len(head)))
    except EmbeddingError as error:
        error.at(path)
        raise


def file_sha256(path: Path) -> str:
    """The sha256 of the whole file at `path` in 64 hex digits; raises `EmbeddingError` when the file cannot be read."""
    try:
        _check_plain(path)
        return sha256_of(path)
    except (OSError, ValueError) as error:
        raise _unreadable(error).at(path) from error
    except EmbeddingError as error:
        error.at(path)
        raise


def write_atomic(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write `data` to `path`. At any moment the file there is either the old one or the complete new one.

    Raises:
        NameTakenError: a file or a link is there and `overwrite` is false.
        EmbeddingError: the folder is missing, the disk is full, or writing is not allowed. No incomplete file remains.
    """
    try:
        replace_file(path, data, overwrite=overwrite)
    except FileExistsError as error:
        raise NameTakenError(f"{path} exists; choose another name or allow overwriting (--overwrite).", path=path) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        folder = Path(os.path.realpath(path)).parent
        raise EmbeddingError(f"{path} cannot be written because the folder {folder} does not exist; make it first.", path=path) from error
    except OSError as error:
        raise EmbeddingError(f"{path} was not written: {os_error_text(error)}.", path=path) from error


def _check_plain(path: Path) -> None:
    """Refuse a pipe or a device: opening a pipe without a writer would block forever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise EmbeddingError("it is not a file; give the path of an embedding file.")


def _unreadable(error: OSError | ValueError) -> EmbeddingError:
    return EmbeddingError(f"it cannot be read: {os_error_text(error) if isinstance(error, OSError) else os_error_words(error)}.")
