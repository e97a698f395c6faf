"""Lists folders: files that may hold embeddings, with their stamps, and the names of their sidecars. Opens no file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from textual_inversion.files import FileStamp
from textual_inversion.formats import PICTURE_ENDINGS, READ_ENDINGS
from textual_inversion.library.sidecars import PREVIEW_ENDINGS, TEXT_ENDINGS

_ENDINGS = tuple(ending for ending in READ_ENDINGS if ending not in PICTURE_ENDINGS)
_ORDER = {ending: position for position, ending in enumerate((*_ENDINGS, *PICTURE_ENDINGS))}
_SIDECAR_ENDINGS = (*PREVIEW_ENDINGS, *TEXT_ENDINGS)


@dataclass(frozen=True, slots=True)
class Listing:
    """One folder as it is now.

    Attributes:
        path: the folder.
        files: name -> stamp of each file that may hold embeddings; None when the system gives no status, for example for a broken link.
        sidecars: lower-case name -> name of each file that may be a picture, notes or metadata of an embedding.
        problem: one sentence why the folder cannot be searched; empty when it can.
    """

    path: str
    files: dict[str, FileStamp | None] = field(default_factory=dict)
    sidecars: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def walk(root: str, seen: set[tuple[int, int]]) -> Iterator[Listing]:
    """List `root` and its subfolders, without hidden ones.

    Args:
        root: a folder; one that does not exist gives nothing.
        seen: device and inode of every listed folder. The walk skips these folders, so circular links end, and adds new ones.
    """
    waiting = [root]
    while waiting:
        path = waiting.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                listing, subfolders = _list(path, [entry for entry in entries if not entry.name.startswith(".")])
        except (FileNotFoundError, NotADirectoryError):
            continue  # a folder may be deleted at any time
        except OSError as error:
            denied = error.errno in (errno.EACCES, errno.EPERM)
            reason = "access is not allowed; check its permissions" if denied else error.strerror or str(error)
            yield Listing(path, problem=f"the folder cannot be searched: {reason}.")
            continue
        yield listing
        waiting += subfolders


def _list(path: str, entries: list[os.DirEntry[str]]) -> tuple[Listing, list[str]]:
    """The folder's listing, and its subfolders."""
    files: list[os.DirEntry[str]] = []
    pictures: list[tuple[str, os.DirEntry[str]]] = []
    listing, subfolders = Listing(path), []
    for entry in entries:
        name = entry.name.lower()
        if _is_folder(entry):
            subfolders.append(entry.path)
        elif name.endswith(_ENDINGS):
            files.append(entry)
        elif name.endswith(_SIDECAR_ENDINGS):
            listing.sidecars[name] = entry.name
            if name.endswith(PICTURE_ENDINGS):
                pictures.append((name, entry))
    embeddings = {os.path.splitext(entry.name.lower())[0] for entry in files}
    for name, entry in pictures:
        stem = os.path.splitext(name)[0]
        if stem not in embeddings and not stem.endswith(".preview"):  # a picture with such a stem is a preview
            files.append(entry)
    for entry in files:
        _add_file(listing, entry)
    return listing, sorted(subfolders, reverse=True)


def _add_file(listing: Listing, entry: os.DirEntry[str]) -> None:
    """Add the file with its stamp, unless it was deleted after the folder was listed."""
    try:
        stamp = _stamp(entry.stat())
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not entry.is_symlink():
            return
        stamp = None
    listing.files[entry.name] = stamp


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # for example a link to itself


def _stamp(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_size, status.st_mtime_ns, 0)  # no inode: directory entries of Windows have none


def stamp_of(path: str | os.PathLike[str]) -> FileStamp | None:
    """The file's current stamp, in the form of a listing; None when the system gives no status."""
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def precedence(path: str | os.PathLike[str]) -> tuple[int, str, int]:
    """Sort key of files with the same name: the shortest path first, then the alphabet, then `.safetensors` before `.pt`."""
    stem, ending = os.path.splitext(os.fspath(path))
    return len(stem), stem, _ORDER[ending.lower()]
