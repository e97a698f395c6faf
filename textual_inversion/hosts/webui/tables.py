"""A WebUI's tables of embeddings, filled through this package's library instead of the WebUI's own readers.

The WebUI's scan still decides when to look and in which folders; we replace only the reading of one file. So every layout loads,
no pickle runs, no file is renamed, and there is a reason for each file that does not fit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from textual_inversion.app.job import user_message
from textual_inversion.errors import EmbeddingError
from textual_inversion.files import short_hash
from textual_inversion.formats import PICTURE_ENDINGS, READ_ENDINGS
from textual_inversion.text import legible

if TYPE_CHECKING:
    from textual_inversion.embedding import Embedding
    from textual_inversion.library import EmbeddingLibrary, Entry

#: Sum of the widths that a table expects -> text encoder -> width.
_WIDTHS = {768: {"clip_l": 768}, 1024: {"clip_h": 1024}, 1280: {"clip_g": 1280}, 2048: {"clip_l": 768, "clip_g": 1280}}
_SCAN, _READ = "load_textual_inversion_embeddings", "load_from_file"
_ENTRIES = "_textual_inversion_entries"  # attribute of a table: normalized path -> entries, during one scan
_MOST_NAMED = 5  # files in a line of the console
_log = logging.getLogger(__name__)


def widths_of(database: Any, *, is_sdxl: bool = False) -> dict[str, int] | None:
    """Text encoder -> width of the vectors that a table takes; None while the table accepts every width, and where it only knows a sum."""
    expected = database.expected_shape
    return None if expected == -1 else _WIDTHS.get(expected, None if is_sdxl else {"clip_l": expected})


@dataclass(frozen=True)
class TableClass:
    """One of the WebUI's classes of tables.

    Attributes:
        database: the class itself, with `load_textual_inversion_embeddings` and `load_from_file`.
        embedding: the class of its embeddings.
        register: puts an embedding into a table.
        device: where the vectors belong.
    """

    database: Any
    embedding: Any
    register: Callable[[Any, Any], Any]
    device: Callable[[], torch.device | str] = lambda: "cpu"


class EmbeddingTables:
    """Wraps the methods of the WebUI's tables while it is installed.

    Args:
        classes: the classes of tables that the WebUI has.
        library_for: gives the library over a table's folders, judged by the table's widths.
        enabled: whether files are read through the library at all; asked at each scan.
        changed: called after a scan that put other embeddings into a table.
    """

    def __init__(
        self,
        classes: Sequence[TableClass],
        library_for: Callable[[Any], EmbeddingLibrary],
        enabled: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        self._classes, self._library_for, self._enabled, self._changed = classes, library_for, enabled, changed
        self._wrapped: list[tuple[Any, str, Any, Any]] = []  # class, name, the WebUI's method, ours
        self._installation = 0  # number of the current installation; a wrapper of an earlier one only calls the WebUI's method
        self._versions: dict[int, str] = {}  # id of a table -> version of its library at the last scan
        self._reported: set[str] = set()  # files that cannot be read, with the reason; each is reported once
        self._unreported: list[tuple[str, str]] = []  # files and reasons of the scan under way

    def install(self) -> None:
        """Wrap the methods; a second call changes nothing."""
        if self._wrapped:
            return
        self._installation += 1
        for table_class in self._classes:
            for name, wrapper in ((_SCAN, self._scanning(table_class)), (_READ, self._reading(table_class))):
                self._wrapped.append((table_class.database, name, getattr(table_class.database, name), wrapper))
                setattr(table_class.database, name, wrapper)

    def remove(self) -> None:
        """Restore the WebUI's methods. A wrapper that another extension has wrapped stays in place, and only calls the WebUI's method."""
        for cls, name, original, wrapper in self._wrapped:
            if getattr(cls, name) is wrapper:
                setattr(cls, name, original)
        self._wrapped = []
        self._versions = {}  # from now on the WebUI fills the tables by itself

    @property
    def installed(self) -> bool:
        """Whether the WebUI's scans run our wrappers.

        They do not while the WebUI reloads its scripts; a job that ends then must not request a scan.
        """
        return bool(self._wrapped)

    def is_stale(self, database: Any) -> bool:
        """Whether a file in any subfolder is new, gone or written over since the table was filled."""
        if not (self._wrapped and self._enabled()):
            return False
        library = self._library_for(database)
        library.recent()
        return library.version != self._versions.get(id(database), "")

    def _is_current(self, installation: int) -> bool:
        """Whether a wrapper of this installation is still active: another extension may keep an old wrapper inside its own."""
        return bool(self._wrapped) and installation == self._installation

    def _scanning(self, table_class: TableClass) -> Callable[..., Any]:
        """The wrapper of the WebUI's scan, which decides when to look and in which folders."""
        scan, installation = getattr(table_class.database, _SCAN), self._installation
        can_be_forced = "force_reload" in signature(scan).parameters

        def load_textual_inversion_embeddings(database: Any, *args: Any, **keywords: Any) -> Any:
            if not self._is_current(installation):
                return scan(database, *args, **keywords)
            setattr(database, _ENTRIES, None)
            before = dict(database.word_embeddings)
            if can_be_forced and not args:
                keywords["force_reload"] = keywords.get("force_reload", False) or self.is_stale(database)
            result = scan(database, *args, **keywords)
            self._report()
            # each read creates new objects, so equal ones mean that nothing was read
            if self._is_current(installation) and before != database.word_embeddings:
                self._changed()
                if self._enabled():
                    for name in database.word_embeddings:  # a name is usable if one of its files was loaded, even if another was skipped
                        database.skipped_embeddings.pop(name, None)
            return result

        return load_textual_inversion_embeddings

    def _reading(self, table_class: TableClass) -> Callable[..., Any]:
        """The wrapper of the WebUI's method that reads one file."""
        read, installation = getattr(table_class.database, _READ), self._installation

        def load_from_file(database: Any, path: str, filename: str) -> Any:
            if self._is_current(installation) and self._enabled():
                return self._load(table_class, database, path)
            return read(database, path, filename)

        return load_from_file

    def _load(self, table_class: TableClass, database: Any, path: str) -> None:
        if not path.lower().endswith((*READ_ENDINGS, *PICTURE_ENDINGS)):
            return
        for entry in self._entries_of(database, path):
            reason = entry.reason
            if not reason:
                try:
                    self._register(table_class, database, entry)
                except (EmbeddingError, OSError) as error:  # the file may have been deleted since it was listed
                    reason = user_message(error)
            if reason:
                _skip(table_class, database, entry, reason)
                file = legible(entry.path.name)
                if entry.info is None and f"{file}: {reason}" not in self._reported:
                    self._reported.add(f"{file}: {reason}")
                    self._unreported.append((file, reason))

    def _entries_of(self, database: Any, path: str) -> list[Entry]:
        """The library's entries of a file. The library looks at the folders once in each of the WebUI's scans."""
        entries: dict[str, list[Entry]] | None = getattr(database, _ENTRIES, None)
        if entries is None:
            entries = {}
            library = self._library_for(database)
            for entry in library.rescan():
                entries.setdefault(os.path.normpath(entry.path), []).append(entry)
            self._versions[id(database)] = library.version
            setattr(database, _ENTRIES, entries)
        return entries.get(os.path.normpath(path), [])

    def _register(self, table_class: TableClass, database: Any, entry: Entry) -> None:
        # a WebUI may load in inference mode, and such tensors cannot be trained
        with torch.inference_mode(False):
            embedding = self._library_for(database).get(entry.name)
            for name in names_of(entry):
                table_class.register(database, _webuis_embedding(table_class, embedding, name, entry))

    def _report(self) -> None:
        """Write one line to the console for all unreadable files of a scan, since a folder may hold thousands."""
        files, self._unreported = self._unreported, []
        if len(files) == 1:
            _log.warning("Textual Inversion: %s: %s", *files[0])
        elif files:
            more = f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else ""
            names = ", ".join(file for file, _ in files[:_MOST_NAMED])
            _log.warning("Textual Inversion: %d embedding files cannot be read (%s%s); their cards say why.", len(files), names, more)


def _webuis_embedding(table_class: TableClass, embedding: Embedding, name: str, entry: Entry) -> Any:
    """`embedding` as an object of the WebUI's own class."""
    from modules import hashes

    provenance, most = embedding.provenance, embedding.num_vectors
    vectors = {encoder: _padded(value, most).to(table_class.device(), torch.float32) for encoder, value in embedding.vectors.items()}
    result = table_class.embedding(vectors if len(vectors) > 1 else next(iter(vectors.values())), name, provenance.step)
    result.sd_checkpoint, result.sd_checkpoint_name = provenance.checkpoint_hash, provenance.checkpoint_name
    result.vectors, result.shape, result.filename = most, sum(embedding.widths.values()), str(entry.path)
    result.hash = hashes.sha256(str(entry.path), f"textual_inversion/{name}") or ""
    result.shorthash = short_hash(result.hash)
    return result


def _padded(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """[n, d] as [count, d], padded with zeros: a WebUI reserves the same number of tokens for every text encoder."""
    missing = count - vectors.shape[0]
    return torch.cat([vectors, vectors.new_zeros(missing, vectors.shape[1])]) if missing else vectors


def _skip(table_class: TableClass, database: Any, entry: Entry, reason: str) -> None:
    """Add the entry to the WebUI's list of skipped embeddings."""
    info = entry.info
    skipped = table_class.embedding(None, entry.name, info.provenance.step if info else None)
    skipped.vectors = info.num_vectors if info else 0
    skipped.shape = sum(info.widths.values()) if info else 0
    skipped.filename = str(entry.path)
    skipped.sd_checkpoint_name = info.provenance.checkpoint_name if info else None
    skipped.reason = reason
    database.skipped_embeddings.setdefault(entry.name, skipped)


# the names by which the WebUI and its pages know an entry


def names_of(entry: Entry) -> list[str]:
    """Names under which an entry is put into a table: the library's name, and the name that the WebUI's own reader would give.

    The WebUI's name is the file's stem or, for a picture, the name stored inside. A name that UTF-8 cannot encode is left out:
    nobody can type it, and the WebUI cannot send it in its list of names.
    """
    info = entry.info
    webuis = [entry.path.stem] if info is None or info.word is None else []
    if entry.path.suffix.lower() in PICTURE_ENDINGS and info is not None and info.stored_name:
        webuis = [info.stored_name]
    return list(dict.fromkeys([entry.name, *(name for name in webuis if name.strip() and name == legible(name))]))


def spellings(entry: Entry) -> list[str]:
    """The words by which a WebUI may know an entry, the WebUI's own before the library's.

    The WebUI keeps characters that the library replaces, and calls a picture by the name stored inside.
    """
    info = entry.info
    if info is None:
        return list(dict.fromkeys([entry.path.stem, entry.name]))
    if info.word is not None:
        return [entry.name]
    inside = info.stored_name if entry.path.suffix.lower() in PICTURE_ENDINGS else None
    return list(dict.fromkeys([entry.path.stem, entry.name, *([inside] if inside else [])]))


def word_of(entry: Entry, known: Collection[str]) -> str:
    """The word by which the WebUI knows an entry. If the WebUI does not know the entry, the word that it would use."""
    words = spellings(entry)
    return next((word for word in words if word in known), words[0])


def unique_names(entries: Sequence[Entry], word: Callable[[Entry], str], folders: Sequence[Path]) -> dict[str, Entry]:
    """Name -> entry for each card, in the order of the entries; the WebUI keeps one card for each name.

    The name is the word. Another file with the same word gets its path after the word, and also a number if that name is taken.
    """
    names: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda entry: not entry.usable):  # the usable entry keeps the plain word, because prompts refer to it
        name = word(entry)
        if name in names:
            name = f"{name} ({path_below(entry.path, folders)})"
        plain, number = name, 2
        while name in names:
            name, number = f"{plain} {number}", number + 1
        names[name] = entry
    position = {id(entry): index for index, entry in enumerate(entries)}
    return dict(sorted(names.items(), key=lambda item: position[id(item[1])]))


def path_below(path: Path, folders: Sequence[Path]) -> str:
    """The path relative to its embeddings folder, with `/`; made encodable, so that it can be shown and sent."""
    below = next((path.relative_to(folder).as_posix() for folder in folders if folder in path.parents), path.name)
    return legible(below)
