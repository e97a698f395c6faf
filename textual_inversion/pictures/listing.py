"""Finds files of a folder by name, whatever the capitals of the name and however its accents are stored."""

from __future__ import annotations

import os
import time
import unicodedata
from functools import lru_cache
from pathlib import Path

_SETTLED = 2_000_000_000  # nanoseconds after which a folder's time tells every change; file systems count time in steps


def fold(name: str) -> str:
    """`name` without its capitals, accents composed: macOS and some network drives store `é` as two letters."""
    return unicodedata.normalize("NFC", name).casefold()


def file_in(folder: Path, *names: str) -> Path | None:
    """The first of `names` that is a file directly inside `folder`; None where there is none, or no such folder.

    A file of the same letters in other capitals is found too, where none has them exactly.
    """
    listed = _files(folder)
    found = (name if name in listed.exact else listed.folded.get(fold(name)) for name in names)
    return next((folder / name for name in found if name), None)


def files_in(folder: Path) -> list[str]:
    """Names of the files directly inside `folder`, hidden ones too, sorted; none where it cannot be listed."""
    return sorted(_files(folder).exact)


def files_ending_in(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """Those of `files_in` with one of these endings, in any capitals."""
    return _files(folder).ending_in(endings)


class _Listed:
    """The names of a folder's files."""

    def __init__(self, names: list[str]) -> None:
        self.exact = frozenset(names)
        self.folded = {fold(name): name for name in sorted(names, reverse=True)}
        self._by_endings: dict[tuple[str, ...], list[str]] = {}  # asked for once for each picture of a folder

    def ending_in(self, endings: tuple[str, ...]) -> list[str]:
        if endings not in self._by_endings:
            self._by_endings[endings] = sorted(name for name in self.exact if name.lower().endswith(endings))
        return self._by_endings[endings]


def _files(folder: Path) -> _Listed:
    try:
        status = os.stat(folder)
    except OSError:
        return _Listed([])
    if time.time_ns() - status.st_mtime_ns < _SETTLED:
        return _list(folder)
    return _listed_before(str(folder), status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=8)
def _listed_before(folder: str, _changed: int, _inode: int) -> _Listed:
    return _list(Path(folder))


def _list(folder: Path) -> _Listed:
    try:
        with os.scandir(folder) as entries:
            return _Listed([entry.name for entry in entries if entry.is_file()])
    except OSError:
        return _Listed([])
