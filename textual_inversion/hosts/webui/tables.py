"""A WebUI's tables of embeddings, filled through this package's library instead of its own readers. Knows no one WebUI.

The WebUI's scan stays in charge: it decides when to look and in which folders. Only what it does with one file is ours, so that
every layout loads, no pickle runs, no file is renamed, and what does not fit says why.
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
_FOUND = "_textual_inversion_entries"  # what a scan has found, kept on the table that is filled
_NAMED = 5  # files in a line of the console
_log = logging.getLogger(__name__)


def widths_of(database: Any) -> dict[str, int] | None:
    """Text encoder -> width of what a table takes; None while it takes everything."""
    expected = database.expected_shape
    return None if expected == -1 else _WIDTHS.get(expected, {"clip_l": expected})


@dataclass(frozen=True)
class Kind:
    """One class of tables.

    Attributes:
        database: the WebUI's class, with `load_textual_inversion_embeddings` and `load_from_file`.
        embedding: the WebUI's class of what is in it.
        register: puts one into a table.
        device: where its vectors belong.
    """

    database: Any
    embedding: Any
    register: Callable[[Any, Any], Any]
    device: Callable[[], torch.device | str] = lambda: "cpu"


class EmbeddingTables:
    """The methods of the WebUI's tables, wrapped while this is installed.

    Args:
        kinds: the classes of tables that the WebUI has.
        library_for: the library over a table's folders, judged by its widths.
        enabled: whether to read at all; asked at each scan.
        changed: told when a table holds other embeddings than before.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        library_for: Callable[[Any], EmbeddingLibrary],
        enabled: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        self._kinds, self._library_for, self._enabled, self._changed = kinds, library_for, enabled, changed
        self._undo: list[tuple[Any, str, Any, Any]] = []  # class, name, what was there, what is there now
        self._turn = 0  # of installing; what was wrapped at an earlier one passes through for good
        self._seen: dict[int, str] = {}  # table -> version of its library at the last scan
        self._told: set[str] = set()  # what cannot be read, each once
        self._to_tell: list[tuple[str, str]] = []  # files and reasons that the scan under way has found

    def install(self) -> None:
        """Wrap the methods; a second call changes nothing."""
        if self._undo:
            return
        self._turn += 1
        for kind in self._kinds:
            self._wrap(kind.database, _SCAN, self._scanning(kind))
            self._wrap(kind.database, _READ, self._reading(kind))

    def remove(self) -> None:
        """Give the WebUI its methods back; one that somebody else has wrapped since passes through from now on."""
        for cls, name, old, new in self._undo:
            if getattr(cls, name) is new:
                setattr(cls, name, old)
        self._undo = []
        self._seen = {}  # from now on the WebUI fills them by itself

    @property
    def installed(self) -> bool:
        """Whether the WebUI's scans come here. While its page is reloaded they do not, and a job that ends then must not ask for one."""
        return bool(self._undo)

    def is_stale(self, database: Any) -> bool:
        """Whether a file in any subfolder is new, gone or written over since the table was filled."""
        if not self._at_work():
            return False
        library = self._library_for(database)
        library.recent()
        return library.version != self._seen.get(id(database), "")

    def _at_work(self) -> bool:
        return bool(self._undo) and self._enabled()

    def _installed(self, turn: int) -> bool:
        """Whether what was wrapped at that turn is still ours to answer for: another extension may keep it in a wrapper of its own."""
        return bool(self._undo) and turn == self._turn

    def _wrap(self, cls: Any, name: str, new: Callable[..., Any]) -> None:
        self._undo.append((cls, name, getattr(cls, name), new))
        setattr(cls, name, new)

    def _scanning(self, kind: Kind) -> Callable[..., Any]:
        scan, turn = getattr(kind.database, _SCAN), self._turn
        can_be_forced = "force_reload" in signature(scan).parameters

        def load_textual_inversion_embeddings(database: Any, *args: Any, **keywords: Any) -> Any:
            if not self._installed(turn):
                return scan(database, *args, **keywords)
            setattr(database, _FOUND, None)
            before = dict(database.word_embeddings)
            if can_be_forced and not args:
                keywords["force_reload"] = keywords.get("force_reload", False) or self.is_stale(database)
            result = scan(database, *args, **keywords)
            self._tell()
            if self._installed(turn) and before != database.word_embeddings:  # other objects, so it has read them again
                self._changed()
                if self._enabled():
                    _keep_apart(database)
            return result

        return load_textual_inversion_embeddings

    def _reading(self, kind: Kind) -> Callable[..., Any]:
        read, turn = getattr(kind.database, _READ), self._turn

        def load_from_file(database: Any, path: str, filename: str) -> Any:
            ours = self._installed(turn) and self._enabled()
            return self._load(kind, database, path) if ours else read(database, path, filename)

        return load_from_file

    def _load(self, kind: Kind, database: Any, path: str) -> None:
        if not path.lower().endswith((*READ_ENDINGS, *PICTURE_ENDINGS)):
            return
        for entry in self._entries_of(database, path):
            reason = entry.reason
            if not reason:
                try:
                    self._register(kind, database, entry)
                except (EmbeddingError, OSError) as error:  # the file may have gone since it was listed
                    reason = user_message(error)
            if reason:
                _skip(kind, database, entry, reason)
                self._note(entry, reason)

    def _note(self, entry: Entry, reason: str) -> None:
        file = legible(entry.path.name)
        if entry.info is None and f"{file}: {reason}" not in self._told:
            self._told.add(f"{file}: {reason}")
            self._to_tell.append((file, reason))

    def _tell(self) -> None:
        """One line in the console for all files that were found to be unreadable, whose folder may hold thousands."""
        found, self._to_tell = self._to_tell, []
        if len(found) == 1:
            _log.warning("Textual Inversion: %s: %s", *found[0])
        elif found:
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            names = ", ".join(file for file, _ in found[:_NAMED])
            _log.warning("Textual Inversion: %d embedding files cannot be read (%s%s); their cards say why.", len(found), names, more)

    def _entries_of(self, database: Any, path: str) -> list[Entry]:
        """What the library knows of the file; it is asked once in each of the WebUI's scans."""
        found: dict[str, list[Entry]] | None = getattr(database, _FOUND, None)
        if found is None:
            found = {}
            library = self._library_for(database)
            for entry in library.rescan():
                found.setdefault(os.path.normpath(entry.path), []).append(entry)
            self._seen[id(database)] = library.version
            setattr(database, _FOUND, found)
        return found.get(os.path.normpath(path), [])

    def _register(self, kind: Kind, database: Any, entry: Entry) -> None:
        # a WebUI may load within inference mode, and such a tensor could not be learned on from
        with torch.inference_mode(False):
            loaded = self._library_for(database).get(entry.name)
            for name in names_of(entry):
                kind.register(database, _hosts_embedding(kind, loaded, name, entry))


def names_of(entry: Entry) -> list[str]:
    """The library's name, and those that a WebUI would have given: the file's own, for a picture the one inside."""
    info = entry.info
    theirs = [entry.path.stem] if info is None or info.word is None else []
    if entry.path.suffix.lower() in PICTURE_ENDINGS and info is not None and info.stored_name:
        theirs = [info.stored_name]
    # one in no encoding can neither be typed nor sent, and the WebUI's own list of names would fail with it
    return list(dict.fromkeys([entry.name, *(name for name in theirs if name.strip() and name == legible(name))]))


def _hosts_embedding(kind: Kind, loaded: Embedding, name: str, entry: Entry) -> Any:
    from modules import hashes

    origin, most = loaded.provenance, loaded.num_vectors
    vectors = {key: _padded(value, most).to(kind.device(), torch.float32) for key, value in loaded.vectors.items()}
    made = kind.embedding(vectors if len(vectors) > 1 else next(iter(vectors.values())), name, origin.step)
    made.sd_checkpoint, made.sd_checkpoint_name = origin.checkpoint_hash, origin.checkpoint_name
    made.vectors, made.shape, made.filename = most, sum(loaded.widths.values()), str(entry.path)
    made.hash = hashes.sha256(str(entry.path), f"textual_inversion/{name}") or ""
    made.shorthash = short_hash(made.hash)
    return made


def _padded(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """[n, d] as [count, d]: a WebUI reserves the same places for every text encoder."""
    missing = count - vectors.shape[0]
    return torch.cat([vectors, vectors.new_zeros(missing, vectors.shape[1])]) if missing else vectors


def _skip(kind: Kind, database: Any, entry: Entry, reason: str) -> None:
    info = entry.info
    skipped = kind.embedding(None, entry.name, info.provenance.step if info else None)
    skipped.vectors = info.num_vectors if info else 0
    skipped.shape = sum(info.widths.values()) if info else 0
    skipped.filename = str(entry.path)
    skipped.sd_checkpoint_name = info.provenance.checkpoint_name if info else None
    skipped.reason = reason
    database.skipped_embeddings.setdefault(entry.name, skipped)


def _keep_apart(database: Any) -> None:
    """A name that one file could be loaded under is not among the skipped ones, though another file of that name is left out."""
    for name in database.word_embeddings:
        database.skipped_embeddings.pop(name, None)


def unique_names(entries: Sequence[Entry], word: Callable[[Entry], str], folders: Sequence[Path]) -> dict[str, Entry]:
    """A name for each card, since the WebUI keeps one card a name: the word, and for a second file of that word its path as well."""
    named: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda entry: not entry.usable):  # the one that prompts mean keeps the plain word
        name = word(entry)
        if name in named:
            name = f"{name} ({path_below(entry.path, folders)})"
        number = 2
        plain = name
        while name in named:
            name, number = f"{plain} {number}", number + 1
        named[name] = entry
    position = {id(entry): index for index, entry in enumerate(entries)}
    return dict(sorted(named.items(), key=lambda item: position[id(item[1])]))


def path_below(path: Path, folders: Sequence[Path]) -> str:
    """The path as seen from the embeddings folder that it is in, with `/`; legible, so that it can be shown and sent."""
    below = next((path.relative_to(folder).as_posix() for folder in folders if folder in path.parents), path.name)
    return legible(below)


def spellings(entry: Entry) -> list[str]:
    """The words by which a WebUI may know an entry, its own before the library's: it keeps characters
    that the library replaces, and calls a picture by the name inside."""
    info = entry.info
    if info is None:
        return list(dict.fromkeys([entry.path.stem, entry.name]))
    if info.word is not None:
        return [entry.name]
    inside = info.stored_name if entry.path.suffix.lower() in PICTURE_ENDINGS else None
    return list(dict.fromkeys([entry.path.stem, entry.name, *([inside] if inside else [])]))


def word_of(entry: Entry, known: Collection[str]) -> str:
    """The word by which the WebUI knows an entry; the one by which it would, where it does not."""
    words = spellings(entry)
    return next((word for word in words if word in known), words[0])
