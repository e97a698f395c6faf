"""The library: scans folders, finds embeddings by name, and loads vectors on demand. A scan reads only new and changed files."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from textual_inversion.embedding import Embedding, clean_name, fold_name, is_spelling, name_in_file, word_name
from textual_inversion.errors import EmbeddingError, NoEmbeddingError
from textual_inversion.files import FileStamp, short_hash
from textual_inversion.formats import PICTURE_ENDINGS, FileInfo, describe_all, file_sha256, load
from textual_inversion.last_run import ENDING
from textual_inversion.library.entry import Entry, join_halves, link_negatives, mark_duplicates, misfit
from textual_inversion.library.folders import Listing, precedence, stamp_of, walk
from textual_inversion.library.sidecars import PREVIEW_ENDINGS, TEXT_ENDINGS

_SHORTEST_PAUSE = 2.0  # seconds between two scans by `recent`
_PAUSE_PER_SCAN = 20  # times the duration of the last scan, so scanning takes at most a twentieth of the time

_Key = tuple[Path, "str | None"]  # a file, and the word when the file holds several embeddings
_Stamps = tuple["FileStamp | None", ...]  # one for each file of an entry


@dataclass(frozen=True, slots=True)
class _ReadFile:
    """The result of reading one file. A picture that carries no embedding has neither infos nor a reason."""

    path: Path
    stamp: FileStamp | None
    infos: tuple[FileInfo, ...] = ()
    reason: str = ""
    temporary: bool = False  # the system was at fault, such as a lost network, so the next scan reads the file again


@dataclass(frozen=True, slots=True)
class _ReadFolder:
    """A folder below the library's folder number `root`, and its files."""

    root: int
    listing: Listing
    files: tuple[_ReadFile, ...]


@dataclass(frozen=True, slots=True)
class _Index:
    """The entries, sorted by name, and by folded name. A scan replaces the whole index, so readers need no lock."""

    entries: tuple[Entry, ...]
    version: int
    by_folded_name: dict[str, list[Entry]] = field(default_factory=dict)


class EmbeddingLibrary:
    """All embeddings under some folders.

    The library reads files only on demand. Every method is thread-safe. When several files have the same name, the first in this order
    gets the name, and the others get a reason: usable before unusable, then by folder, by length of the path without ending, by
    alphabet, and `.safetensors` before `.pt`, as in training.

    Args:
        folders: searched with their subfolders; one that does not exist counts as empty.
        width: text encoder -> width of the checkpoint's token table; None accepts every width.
    """

    def __init__(self, folders: Sequence[str | Path], width: dict[str, int] | None = None) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self._width = width
        self._scanning = threading.RLock()
        self._folders: dict[str, _ReadFolder] = {}  # by path, in the order of the search
        self._index: _Index | None = None
        self._next_scan = 0.0
        self._load_errors: dict[_Key, tuple[_Stamps, str]] = {}  # errors that appear only when vectors are loaded
        self._loaded: dict[_Key, tuple[_Stamps, Embedding]] = {}
        self._hashes: dict[Path, tuple[FileStamp | None, str]] = {}

    def entries(self) -> list[Entry]:
        """Every embedding of the last scan, usable or not, sorted by name."""
        return list(self._current().entries)

    def names(self) -> list[str]:
        """The names that prompts can use."""
        return [entry.name for entry in self._current().entries if entry.usable]

    def spellings(self) -> list[str]:
        """What prompts may write besides `names`: the names of files that have signs which names cannot have, such as `by (someone)`."""
        index = self._current()
        stems = (entry.path.stem for entry in index.entries if entry.usable and entry.info and entry.info.word is None)
        return [stem for stem in stems if is_spelling(stem) and fold_name(stem) not in index.by_folded_name]

    @property
    def version(self) -> str:
        """A text that changes whenever the entries change."""
        return str(self._current().version)

    def find(self, name: str) -> Entry | None:
        """The entry called `name`: an exact match, else a match that ignores case and the encoding of accents; usable entries first."""
        wanted = word_name(name)
        same = self._current().by_folded_name.get(fold_name(wanted), [])
        return min(same, key=lambda entry: (entry.name != wanted, not entry.usable), default=None)

    def get(self, name: str) -> Embedding:
        """Load the embedding called `name`, and keep it in memory until its file changes.

        Raises:
            EmbeddingError: no such name, or its file cannot be used with this checkpoint.
        """
        embedding, entry = self._get(name)
        if entry.info and embedding.widths != entry.info.widths:  # written over since the last scan
            self.rescan()
            embedding, entry = self._get(name)
            if entry.info and embedding.widths != entry.info.widths:
                raise EmbeddingError(f"{entry.path} changes while it is read; try again when nothing else writes it.", path=entry.path)
        return embedding

    def _get(self, name: str) -> tuple[Embedding, Entry]:
        """The embedding as the file holds it now, and the entry of the last scan."""
        entry = self.find(name)
        if entry is None:
            near = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.5)
            nearest = f"; the nearest are {', '.join(near)}" if near else ""
            raise EmbeddingError(f"There is no embedding named {name!r}{nearest}.")
        if not entry.usable:
            raise EmbeddingError(f"The embedding {entry.name!r} ({entry.path}) cannot be used: {entry.reason}", path=entry.path)
        stamps = tuple(stamp_of(path) for path in _paths(entry))
        cached = self._loaded.get(_key(entry))
        if cached is None or cached[0] != stamps:
            cached = self._loaded[_key(entry)] = (stamps, self._load(entry, stamps))
        return cached[1], entry  # not from the dict: another thread's scan may remove it there at any time

    def as_mapping(self) -> Mapping[str, Embedding]:
        """A live mapping from the names and spellings that prompts can use to their embeddings. Each lookup loads the embedding."""
        return _LazyMapping(self)

    def sha256(self, entry: Entry) -> str:
        """The sha256 of the whole file of `entry` in 64 hex digits; computed again only when the file changes.

        Raises:
            EmbeddingError: the file cannot be read any more.
        """
        stamp = stamp_of(entry.path)
        cached = self._hashes.get(entry.path)
        if cached is None or cached[0] != stamp:
            cached = self._hashes[entry.path] = (stamp, file_sha256(entry.path))
        return cached[1]

    def short_hash_of(self, name: str) -> str:
        """The hash of the embedding called `name`, as infotexts have it; empty where there is none, or its file cannot be read."""
        entry = self.find(name)
        try:
            return short_hash(self.sha256(entry)) if entry else ""
        except EmbeddingError:
            return ""

    def rescan(self) -> list[Entry]:
        """Scan the folders again; only new and changed files are read. Returns the new entries."""
        with self._scanning:
            begun = time.monotonic()
            folders = self._scan()
            index = self._index
            if index is None or list(folders.values()) != list(self._folders.values()):
                self._folders = folders
                self._forget_missing()
                index = self._build_index()
            now = time.monotonic()
            self._next_scan = now + max(_SHORTEST_PAUSE, _PAUSE_PER_SCAN * (now - begun))
            return list(index.entries)

    def recent(self) -> list[Entry]:
        """The entries of a recent scan. It limits how often it scans, so callers may call it every second."""
        if self._index is None or time.monotonic() > self._next_scan:
            return self.rescan()
        return self.entries()

    def set_width(self, width: dict[str, int] | None) -> list[Entry]:
        """Check all embeddings against another checkpoint; returns the new entries."""
        with self._scanning:
            self._width, self._index = width, None
            return self.rescan()

    def _current(self) -> _Index:
        index = self._index
        if index is None:
            with self._scanning:
                self.rescan()
                index = self._index
        assert index is not None
        return index

    def _scan(self) -> dict[str, _ReadFolder]:
        """All folders as they are now; an unchanged folder keeps its old result."""
        seen: set[tuple[int, int]] = set()  # shared by the roots, because one root may lie in another
        folders: dict[str, _ReadFolder] = {}
        for root, folder in enumerate(self.folders):
            for listing in walk(str(folder), seen):
                old = self._folders.get(listing.path)
                same = old is not None and old.root == root and old.listing == listing and not any(file.temporary for file in old.files)
                folders[listing.path] = old if old is not None and same else _read_folder(root, listing, old)
        return folders

    def _build_index(self) -> _Index:
        entries = mark_duplicates(self._apply_load_errors(join_halves(self._list_entries(), self._width)))
        entries.sort(key=lambda entry: (entry.name.casefold(), entry.name))  # a stable sort keeps the order of precedence within a name
        index = _Index(tuple(link_negatives(entries)), time.time_ns())
        for entry in index.entries:
            index.by_folded_name.setdefault(fold_name(entry.name), []).append(entry)
        self._index = index
        return index

    def _list_entries(self) -> list[Entry]:
        """An entry for each embedding of each file, in the order of precedence, before the rules that combine entries."""
        folders = list(self._folders.values())
        entries = [
            Entry(clean_name(Path(folder.listing.path).name), Path(folder.listing.path), None, folder.listing.problem)
            for folder in folders
            if folder.listing.problem
        ]
        files = [(folder.root, precedence(file.path), folder.listing, file) for folder in folders for file in folder.files]
        for _, _, listing, file in sorted(files, key=lambda item: item[:2]):
            stem = file.path.stem
            preview, sidecars = _sidecars(listing, stem.lower(), file.path.parent)
            changed = file.stamp.modified / 1e9 if file.stamp else 0.0
            if file.reason:
                entries.append(Entry(clean_name(stem), file.path, None, file.reason, preview, sidecars=sidecars, changed=changed))
            for info in file.infos:
                name = name_in_file(stem, info.word)
                entries.append(Entry(name, file.path, info, misfit(info, self._width), preview, sidecars=sidecars, changed=changed))
        return entries

    def _apply_load_errors(self, entries: list[Entry]) -> list[Entry]:
        """Set the last load error as the reason of each entry whose files have not changed since the error."""
        if not self._load_errors:
            return entries
        stamps = {file.path: file.stamp for folder in self._folders.values() for file in folder.files}
        marked = []
        for entry in entries:
            failed_stamps, reason = self._load_errors.get(_key(entry), ((), ""))
            unchanged = bool(reason) and failed_stamps == tuple(stamps.get(path) for path in _paths(entry))
            marked.append(replace(entry, reason=reason) if unchanged and entry.usable else entry)
        return marked

    def _load(self, entry: Entry, stamps: _Stamps) -> Embedding:
        """Load the vectors. An error caused by the file is stored and becomes the entry's reason."""
        try:
            parts = [load(path, entry.name, word=_key(entry)[1]) for path in _paths(entry)]
            return parts[0].with_vectors({encoder: rows for part in parts for encoder, rows in part.vectors.items()})
        except EmbeddingError as error:
            if not _is_temporary(error):
                with self._scanning:
                    reason = error.reason if error.path in (None, entry.path) else str(error)  # keeps the name of the second half's file
                    self._load_errors[_key(entry)] = (stamps, reason)
                    self._build_index()
            raise

    def _forget_missing(self) -> None:
        """Clear the caches of deleted files."""
        present = {file.path for folder in self._folders.values() for file in folder.files}
        for key in [key for key in (*self._loaded, *self._load_errors) if key[0] not in present]:
            self._loaded.pop(key, None)
            self._load_errors.pop(key, None)
        for path in [path for path in list(self._hashes) if path not in present]:
            self._hashes.pop(path, None)


class _LazyMapping(Mapping[str, Embedding]):
    """The usable names of a library, and the other spellings of them -> their embeddings, loaded one by one."""

    def __init__(self, library: EmbeddingLibrary) -> None:
        self._library = library

    def __getitem__(self, name: str) -> Embedding:
        if name not in self:
            raise KeyError(name)
        return self._library.get(name)

    def __contains__(self, name: object) -> bool:
        entry = self._library.find(name) if isinstance(name, str) else None
        if entry is None or not entry.usable:
            return False
        return entry.name == name or (entry.path.stem == name and name in self._library.spellings())

    def __iter__(self) -> Iterator[str]:
        yield from self._library.names()
        yield from self._library.spellings()

    def __len__(self) -> int:
        return len(self._library.names()) + len(self._library.spellings())


def _key(entry: Entry) -> _Key:
    return entry.path, entry.info.word if entry.info else None


def _paths(entry: Entry) -> tuple[Path, ...]:
    return (entry.path,) if entry.second is None else (entry.path, entry.second)


def _read_folder(root: int, listing: Listing, old: _ReadFolder | None) -> _ReadFolder:
    """Read the folder's files; one that is unchanged since `old` keeps its old result."""
    known = {file.path.name: file for file in old.files} if old else {}
    files: list[_ReadFile] = []
    for name, stamp in listing.files.items():
        file = known.get(name)
        if file is None or file.stamp != stamp or file.temporary:
            file = _read_file(Path(listing.path, name), stamp)
        if file is not None:
            files.append(file)
    return _ReadFolder(root, listing, tuple(files))


def _read_file(path: Path, stamp: FileStamp | None) -> _ReadFile | None:
    """Read the facts in the file; None when it was deleted after its folder was listed."""
    try:
        return _ReadFile(path, stamp, tuple(describe_all(path)))
    except NoEmbeddingError as error:
        return _ReadFile(path, stamp, reason="" if path.suffix.lower() in PICTURE_ENDINGS else error.reason)
    except EmbeddingError as error:
        if isinstance(error.__cause__, FileNotFoundError) and stamp is not None:
            return None
        return _ReadFile(path, stamp, reason=error.reason, temporary=_is_temporary(error))


def _is_temporary(error: BaseException | None) -> bool:
    """Whether the system, not the file's contents, is at fault."""
    while error is not None:
        if isinstance(error, OSError):
            return True
        error = error.__cause__
    return False


def _sidecars(listing: Listing, stem: str, folder: Path) -> tuple[Path | None, tuple[Path, ...]]:
    """The preview, and the notes and metadata, of files with this lower-case stem."""
    names = listing.sidecars
    if not names:
        return None, ()
    preview = next((folder / names[stem + ending] for ending in PREVIEW_ENDINGS if stem + ending in names), None)
    return preview, tuple(folder / names[stem + ending] for ending in (*TEXT_ENDINGS, ENDING) if stem + ending in names)
