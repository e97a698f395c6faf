"""The library itself: scans that read only what is new, names looked up, vectors loaded when they are asked for.

Knows nothing of how files are laid out or of what lies beside them.
"""

from __future__ import annotations

import difflib
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from textual_inversion.embedding import Embedding, clean_name, word_name
from textual_inversion.errors import EmbeddingError, NoEmbeddingError
from textual_inversion.formats import PICTURE_ENDINGS, FileInfo, describe_all, file_sha256, load
from textual_inversion.library import folders as on_disk
from textual_inversion.library.entry import Entry, join_halves, link_negatives, mark_duplicates, misfit
from textual_inversion.library.folders import Listing, Stamp, stamp_of
from textual_inversion.library.sidecars import PREVIEW_ENDINGS, TEXT_ENDINGS

_SHORTEST_REST = 2.0  # seconds between looks that nobody asked for
_REST_PER_LOOK = 20  # a look may take a twentieth of the time


@dataclass(frozen=True, slots=True)
class _File:
    """What was read of one file; neither embeddings nor a reason for a picture that is only a picture."""

    path: Path
    stamp: Stamp
    infos: tuple[FileInfo, ...] = ()
    reason: str = ""
    passing: bool = False  # the reason may pass, such as a lost network


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder below the library's folder number `root`, and what was read of its files."""

    root: int
    listing: Listing
    files: tuple[_File, ...]


@dataclass(frozen=True, slots=True)
class _Shown:
    """The entries by name, and those that each name without regard to case may mean; replaced as a whole, so readers need no lock."""

    entries: tuple[Entry, ...]
    version: int
    meant: dict[str, list[Entry]] = field(default_factory=dict)


class EmbeddingLibrary:
    """All embeddings under some folders, in the order in which a name is looked up.

    Nothing is read until it is first asked. Every method may be called from any thread. A name that several files have goes to
    a usable file before an unusable one, then to the first folder, the shortest path without ending, the alphabet, and to
    `.safetensors` before `.pt` as training does; the others say so.

    Args:
        folders: searched with their subfolders; one that does not exist counts as empty.
        width: text encoder -> width of the checkpoint's token table; None accepts every width.
    """

    def __init__(self, folders: Sequence[str | Path], width: dict[str, int] | None = None) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self._width = width
        self._scanning = threading.RLock()
        self._found: dict[str, _Folder] = {}  # by path, in the order of the search
        self._shown: _Shown | None = None
        self._rest_until = 0.0
        self._spoiled: dict[tuple[Path, str | None], tuple[tuple[Stamp, ...], str]] = {}  # what only reading the vectors tells
        self._loaded: dict[tuple[Path, str | None], tuple[tuple[Stamp, ...], Embedding]] = {}
        self._hashes: dict[Path, tuple[Stamp, str]] = {}

    def entries(self) -> list[Entry]:
        """Every embedding, usable or not, by name, as last seen."""
        return list(self._current().entries)

    def names(self) -> list[str]:
        """The names that prompts can use."""
        return [entry.name for entry in self._current().entries if entry.usable]

    @property
    def version(self) -> str:
        """Another one whenever the entries have changed."""
        return str(self._current().version)

    def find(self, name: str) -> Entry | None:
        """The entry that `name` means: exactly, else with other capitals or its accents spelt otherwise; usable ones first, or None."""
        wanted = word_name(name)
        same = self._current().meant.get(_fold(wanted), [])
        return min(same, key=lambda entry: (entry.name != wanted, not entry.usable), default=None)

    def get(self, name: str) -> Embedding:
        """Load the embedding called `name`; kept in memory until its file changes.

        Raises:
            EmbeddingError: no such name, or its file cannot be used with this checkpoint.
        """
        embedding, entry = self._get(name)
        if entry.info and embedding.widths != entry.info.widths:  # written over since the last look
            self.rescan()
            embedding, entry = self._get(name)
            if entry.info and embedding.widths != entry.info.widths:
                raise EmbeddingError(f"{entry.path} changes while it is read; try again when nothing else writes it.")
        return embedding

    def _get(self, name: str) -> tuple[Embedding, Entry]:
        """What the file holds now, and what the last look found in it."""
        entry = self.find(name)
        if entry is None:
            raise EmbeddingError(f"There is no embedding named {name!r}{self._nearest(name)}.")
        if not entry.usable:
            raise EmbeddingError(f"The embedding {entry.name!r} ({entry.path}) cannot be used: {entry.reason}")
        stamps = tuple(stamp_of(path) for path in _paths(entry))
        kept = self._loaded.get(_key(entry))
        if kept is None or kept[0] != stamps:  # looked up once, because another thread's scan may forget it at any time
            kept = self._loaded[_key(entry)] = (stamps, self._load(entry, stamps))
        return kept[1], entry

    def as_mapping(self) -> Mapping[str, Embedding]:
        """The names that prompts can use -> their embeddings, each loaded when it is taken out; follows the library."""
        return _Loading(self)

    def sha256(self, entry: Entry) -> str:
        """Of the whole file of `entry`, 64 hex digits; read once until the file changes.

        Raises:
            EmbeddingError: the file cannot be read any more.
        """
        stamp = stamp_of(entry.path)
        kept = self._hashes.get(entry.path)
        if kept is None or kept[0] != stamp:
            kept = self._hashes[entry.path] = (stamp, file_sha256(entry.path))
        return kept[1]

    def rescan(self) -> list[Entry]:
        """Look at the folders again; only files that are new or changed are read. Returns the new entries."""
        with self._scanning:
            begun = time.monotonic()
            found = self._look()
            before = self._shown
            if before is None or list(found.values()) != list(self._found.values()):
                self._found = found
                self._forget_missing()
                before = self._show()
            now = time.monotonic()
            self._rest_until = now + max(_SHORTEST_REST, _REST_PER_LOOK * (now - begun))
            return list(before.entries)

    def recent(self) -> list[Entry]:
        """The entries as of a moment ago; cheap enough to be asked every second, as it looks at the folders only now and then."""
        if self._shown is None or time.monotonic() > self._rest_until:
            return self.rescan()
        return self.entries()

    def set_width(self, width: dict[str, int] | None) -> list[Entry]:
        """Judge all embeddings for another checkpoint; returns the new entries."""
        with self._scanning:
            self._width, self._shown = width, None
            return self.rescan()

    def _current(self) -> _Shown:
        shown = self._shown
        if shown is None:
            with self._scanning:
                self.rescan()
                shown = self._shown
        assert shown is not None
        return shown

    def _nearest(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.5)
        return f"; the nearest are {', '.join(near)}" if near else ""

    def _look(self) -> dict[str, _Folder]:
        """All folders as they are now; those in which nothing changed are the ones of before."""
        seen: set[tuple[int, int]] = set()  # shared, because one folder may lie in another
        found: dict[str, _Folder] = {}
        for root, folder in enumerate(self.folders):
            for listing in on_disk.walk(str(folder), seen):
                old = self._found.get(listing.path)
                same = old is not None and old.root == root and old.listing == listing and not any(file.passing for file in old.files)
                found[listing.path] = old if old is not None and same else _read_folder(root, listing, old)
        return found

    def _show(self) -> _Shown:
        """Judge what was found."""
        entries = mark_duplicates(self._spoil(join_halves(self._entries(), self._width)))
        # a stable sort: within the same name the best placed stays first
        entries.sort(key=lambda entry: (entry.name.casefold(), entry.name))
        shown = _Shown(tuple(link_negatives(entries)), time.time_ns())
        for entry in shown.entries:
            shown.meant.setdefault(_fold(entry.name), []).append(entry)
        self._shown = shown
        return shown

    def _entries(self) -> list[Entry]:
        """An entry for each embedding that was found, each file by itself, best placed first."""
        folders = list(self._found.values())
        entries = [
            Entry(clean_name(Path(folder.listing.path).name), Path(folder.listing.path), None, folder.listing.problem)
            for folder in folders
            if folder.listing.problem
        ]
        files = [(folder.root, on_disk.place(file.path), folder.listing, file) for folder in folders for file in folder.files]
        for _, _, listing, file in sorted(files, key=lambda item: item[:2]):
            stem = file.path.stem
            preview, beside = _beside(listing, stem.lower(), file.path.parent)
            if file.reason:
                entries.append(Entry(clean_name(stem), file.path, None, file.reason, preview, beside=beside))
            for info in file.infos:
                name = clean_name(stem) if info.word is None else word_name(info.word)
                entries.append(Entry(name, file.path, info, misfit(info, self._width), preview, beside=beside))
        return entries

    def _spoil(self, entries: list[Entry]) -> list[Entry]:
        """The entries, with what only reading their vectors has told."""
        if not self._spoiled:
            return entries
        stamps = {file.path: file.stamp for folder in self._found.values() for file in folder.files}
        told = []
        for entry in entries:
            noted, reason = self._spoiled.get(_key(entry), ((), ""))
            same = bool(reason) and noted == tuple(stamps.get(path) for path in _paths(entry))
            told.append(replace(entry, reason=reason) if same and entry.usable else entry)
        return told

    def _load(self, entry: Entry, stamps: tuple[Stamp, ...]) -> Embedding:
        """The vectors; a file that turns out to be spoiled is listed with that as its reason."""
        try:
            parts = [load(path, entry.name, word=_key(entry)[1]) for path in _paths(entry)]
            return parts[0].with_vectors({encoder: rows for part in parts for encoder, rows in part.vectors.items()})
        except EmbeddingError as error:
            if not _may_pass(error):
                with self._scanning:
                    self._spoiled[_key(entry)] = (stamps, _without_path(error, entry.path))
                    self._show()
            raise

    def _forget_missing(self) -> None:
        """Drop what is remembered of files that are gone."""
        there = {file.path for folder in self._found.values() for file in folder.files}
        for key in [key for key in (*self._loaded, *self._spoiled) if key[0] not in there]:
            self._loaded.pop(key, None)
            self._spoiled.pop(key, None)
        for path in [path for path in list(self._hashes) if path not in there]:
            self._hashes.pop(path, None)


class _Loading(Mapping[str, Embedding]):
    """Names -> embeddings of a library, loaded one by one."""

    def __init__(self, library: EmbeddingLibrary) -> None:
        self._library = library

    def __getitem__(self, name: str) -> Embedding:
        if name not in self:
            raise KeyError(name)
        return self._library.get(name)

    def __contains__(self, name: object) -> bool:
        entry = self._library.find(name) if isinstance(name, str) else None
        return entry is not None and entry.usable and entry.name == name

    def __iter__(self) -> Iterator[str]:
        return iter(self._library.names())

    def __len__(self) -> int:
        return len(self._library.names())


def _fold(name: str) -> str:
    """The same for all spellings of a name: some systems store an accent as a mark of its own."""
    return unicodedata.normalize("NFC", name).casefold()


def _key(entry: Entry) -> tuple[Path, str | None]:
    return entry.path, entry.info.word if entry.info else None


def _paths(entry: Entry) -> tuple[Path, ...]:
    return (entry.path,) if entry.second is None else (entry.path, entry.second)


def _read_folder(root: int, listing: Listing, old: _Folder | None) -> _Folder:
    """What the folder holds; only files that are new or changed since `old` are read."""
    known = {file.path.name: file for file in old.files} if old else {}
    files: list[_File] = []
    for name, stamp in listing.files.items():
        file = known.get(name)
        if file is None or file.stamp != stamp or file.passing:
            file = _read_file(Path(listing.path, name), stamp)
        if file is not None:
            files.append(file)
    return _Folder(root, listing, tuple(files))


def _read_file(path: Path, stamp: Stamp) -> _File | None:
    """What the file holds or why it cannot be read; None when it has vanished since its folder was listed."""
    try:
        return _File(path, stamp, tuple(describe_all(path)))
    except NoEmbeddingError as error:
        return _File(path, stamp, reason="" if path.suffix.lower() in PICTURE_ENDINGS else _without_path(error, path))
    except EmbeddingError as error:
        if isinstance(error.__cause__, FileNotFoundError) and stamp != on_disk.GONE:
            return None
        return _File(path, stamp, reason=_without_path(error, path), passing=_may_pass(error))


def _may_pass(error: BaseException | None) -> bool:
    """Whether the system, not the file's contents, is at fault."""
    while error is not None:
        if isinstance(error, OSError):
            return True
        error = error.__cause__
    return False


def _without_path(error: EmbeddingError, path: Path) -> str:
    """The message for a list that shows the path by itself."""
    return str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")


def _beside(listing: Listing, stem: str, folder: Path) -> tuple[Path | None, tuple[Path, ...]]:
    """The picture, and the notes and metadata, of files of this lower-case stem."""
    names = listing.beside
    if not names:
        return None, ()
    preview = next((folder / names[stem + ending] for ending in PREVIEW_ENDINGS if stem + ending in names), None)
    return preview, tuple(folder / names[stem + ending] for ending in TEXT_ENDINGS if stem + ending in names)
