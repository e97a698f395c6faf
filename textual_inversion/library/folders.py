"""Folders and what lies in them: embedding files with size and time, and the names beside them. Reads no file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from textual_inversion.formats import PICTURE_ENDINGS, READ_ENDINGS
from textual_inversion.library.sidecars import PREVIEW_ENDINGS, TEXT_ENDINGS

_ENDINGS = tuple(ending for ending in READ_ENDINGS if ending not in PICTURE_ENDINGS)
_ORDER = {ending: place for place, ending in enumerate((*_ENDINGS, *PICTURE_ENDINGS))}
_BESIDE = (*PREVIEW_ENDINGS, *TEXT_ENDINGS)
Stamp = tuple[int, int]  # size, mtime_ns
GONE: Stamp = (-1, -1)  # of what cannot be looked at, such as a link to nothing


@dataclass(frozen=True, slots=True)
class Listing:
    """One folder as it is now.

    Attributes:
        path: the folder.
        files: name -> stamp of what may be embeddings.
        beside: lower-case name -> name of what may be pictures, notes and metadata.
        problem: one sentence why it cannot be searched; empty when it can.
    """

    path: str
    files: dict[str, Stamp] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def walk(root: str, seen: set[tuple[int, int]]) -> Iterator[Listing]:
    """Listings of `root` and of its subfolders but hidden ones; folders in `seen` are left out, so that links in a circle end."""
    waiting = [root]
    while waiting:
        path = waiting.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as found:
                listing, below = _list(path, [entry for entry in found if not entry.name.startswith(".")])
        except (FileNotFoundError, NotADirectoryError):
            continue  # a folder may vanish at any time
        except OSError as error:
            yield Listing(path, problem=f"the folder cannot be searched: {_why(error)}.")
            continue
        yield listing
        waiting += below


def _list(path: str, found: list[os.DirEntry[str]]) -> tuple[Listing, list[str]]:
    """The folder's listing, and its subfolders."""
    files: list[os.DirEntry[str]] = []
    pictures: list[tuple[str, os.DirEntry[str]]] = []
    listing, below = Listing(path), []
    for entry in found:
        name = entry.name.lower()
        if _is_folder(entry):
            below.append(entry.path)
        elif name.endswith(_ENDINGS):
            files.append(entry)
        elif name.endswith(_BESIDE):
            listing.beside[name] = entry.name
            if name.endswith(PICTURE_ENDINGS):
                pictures.append((name, entry))
    embeddings = {os.path.splitext(entry.name.lower())[0] for entry in files}
    for name, entry in pictures:
        stem = os.path.splitext(name)[0]
        if stem not in embeddings and not stem.endswith(".preview"):  # the others are previews
            files.append(entry)
    for entry in files:
        if (stamp := _stamp(entry)) is not None:
            listing.files[entry.name] = stamp
    return listing, sorted(below, reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # such as a link to itself


def _stamp(entry: os.DirEntry[str]) -> Stamp | None:
    """None for a file that has vanished since the folder was listed."""
    try:
        status = entry.stat()
    except OSError as error:
        return None if isinstance(error, FileNotFoundError) and not entry.is_symlink() else GONE
    return status.st_size, status.st_mtime_ns


def place(path: str | os.PathLike[str]) -> tuple[int, str, int]:
    """Sorts the best placed of files with the same name first: the shortest path, the alphabet, `.safetensors` before `.pt`."""
    stem, ending = os.path.splitext(os.fspath(path))
    return len(stem), stem, _ORDER[ending.lower()]


def stamp_of(path: str | os.PathLike[str]) -> Stamp:
    """Size and time of the file now; `GONE` when it cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return GONE
    return status.st_size, status.st_mtime_ns


def _why(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "access is not allowed; check its permissions"
    return error.strerror or str(error)
