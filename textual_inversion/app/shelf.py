"""Renames and deletes embeddings together with the files beside them, in a way that can be undone, also after a restart."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from textual_inversion.app.actions import Outcome, answered
from textual_inversion.app.job import JobKind, JobRunningError
from textual_inversion.errors import EmbeddingError, NameTakenError
from textual_inversion.files import os_error_text, read_regular, remove_quietly, replace_file
from textual_inversion.last_run import last_run_file, read_last_run
from textual_inversion.text import counted

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine

Moves = Sequence[tuple[Path, Path]]
_log = logging.getLogger(__name__)
_MOST_NOTE = 2**20  # bytes
_STAMP = "%Y-%m-%d_%H-%M-%S"
_OWN_FOLDERS = ("training", "shelf", "reviews", "preprocessed", "pictures", "latents", "txt2img")  # below the outputs, for other things
_OF_THE_FILE = (".optim", ".journal")  # behind the whole file name; the others follow its stem


@dataclass(frozen=True)
class _Change:
    """The last change of an embedding: a new name, or for a deleted one the files that were moved."""

    moves: Moves
    name: str
    new_name: str


class Shelf:
    """The handlers; each returns a sentence, also after an error.

    The last change is kept in `outputs/shelf`, and so are deleted files.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @answered
    def rename(self, name: str, new_name: str) -> Outcome:
        """Give the embedding `name` another name, with its picture, notes, settings, copies and previews."""
        from textual_inversion.embedding import check_name
        from textual_inversion.prompts.names import about_name

        path, new = self._file(name), check_name(new_name.strip())
        self._require_free(new, path)
        self._rename(path, new)
        self._keep_note([], path.stem, new)
        return Outcome(f"“{path.stem}” is called “{new}” now. {about_name(new)}".strip(), name=new)

    def _rename(self, path: Path, new: str) -> None:
        logs = self._logs(path)
        moves = [(file, file.with_name(f"{new}{file.name[len(path.stem) :]}")) for file in self._files(path)]
        moved = [(folder, folder.with_name(new)) for folder in logs]
        _move([*moves, *moved])
        self._correct_last_run(path.with_name(f"{new}{path.suffix}"), moved)
        for before, after in moved or [(path, path)]:
            self.engine.job.renamed(path.stem, new, before, after)
        self.engine.refresh()

    @answered
    def delete(self, name: str) -> Outcome:
        """Move the embedding `name`, and everything that belongs to it, out of the folders that WebUIs read."""
        path = self._file(name)
        place = _free(self._place() / f"{path.stem} {time.strftime(_STAMP)}")
        files = list(self._files(path))
        moves = [(file, place / file.name) for file in files]
        moves += [(folder, place / f"logs {number}") for number, folder in enumerate(self._logs(path), 1)]
        _move(moves)
        self._keep_note(moves, path.stem, "")
        self.engine.refresh()
        return Outcome(f"“{path.stem}” is deleted; {counted(len(files), 'file')} and its copies and previews lie in {place} now.")

    @answered
    def undo(self) -> Outcome:
        """Undo the last change, once."""
        last = self._last()
        if last is None:
            return Outcome("There is nothing to undo.", "hint")
        if last.new_name:
            path = self._file(last.new_name)
            self._require_free(last.name, path)
            self._rename(path, last.name)
        elif taken := [source for source, _ in last.moves if source.exists()]:
            raise EmbeddingError(f"{taken[0]} exists again; move it away first.", path=taken[0])
        else:
            self._require_free(last.name)
            _move([(target, source) for source, target in reversed(last.moves)])
            self.engine.refresh()
        remove_quietly(self._note())
        return Outcome(f"“{last.name}” has its old name again." if last.new_name else f"“{last.name}” is there again.", name=last.name)

    def _file(self, name: str) -> Path:
        path = self.engine.embedding_file(name.strip())
        if self.engine.job.about(JobKind.TRAIN, path.stem):
            raise JobRunningError(f"“{path.stem}” is being trained; interrupt that first, or wait until it is done.")
        return path

    def _files(self, path: Path) -> Iterator[Path]:
        """The embedding's file first, then the files beside it that belong to it."""
        from textual_inversion.library.sidecars import PREVIEW_ENDINGS, TEXT_ENDINGS

        yield path
        of_the_name = (".training.json", *PREVIEW_ENDINGS, *TEXT_ENDINGS)
        names = {f"{path.name}{ending}".lower() for ending in _OF_THE_FILE} | {f"{path.stem}{ending}".lower() for ending in of_the_name}
        yield from sorted(file for file in path.parent.iterdir() if file.name.lower() in names and file != path)

    def _logs(self, path: Path) -> list[Path]:
        """The folders below `outputs` with the copies, previews and tables of the embedding in the file `path`."""
        outputs = self.engine.host.folders().outputs.resolve()
        folders = [outputs / "training" / path.stem]
        if run_folder := str(read_last_run(path).settings.get("log_dir") or ""):
            # A folder for each run lies in one for each name. The settings may come from elsewhere and lead anywhere, hence the real place.
            of_the_name = Path(run_folder).expanduser().resolve().parent
            named = of_the_name.name == path.stem and outputs in of_the_name.parents
            folders += [of_the_name] if named and of_the_name not in (*folders, *(outputs / own for own in _OWN_FOLDERS)) else []
        return [folder for folder in folders if folder.is_dir()]

    def _place(self) -> Path:
        return self.engine.host.folders().outputs / "shelf"

    def _note(self) -> Path:
        return self._place() / "last.json"

    def _require_free(self, new: str, path: Path | None = None) -> None:
        """Raise `NameTakenError` where prompts know another embedding by the name `new`; the one in the file `path` may have it."""
        from textual_inversion.embedding import fold_name

        old = path.stem if path else ""
        taken = [card.name for card in self.engine.cards(rescan=True) if fold_name(card.name) == fold_name(new) and card.name != old]
        there = path is not None and path.with_name(f"{new}{path.suffix}").exists() and fold_name(new) != fold_name(old)
        if taken or (there and new != old):
            raise NameTakenError(f"There is an embedding {taken[0] if taken else new!r} already; choose another name.")
        if new == old:
            raise NameTakenError(f"It is called “{new}” already.")

    def _keep_note(self, moves: Moves, name: str, new_name: str) -> None:
        """Keep how to undo a change; where that fails, the change stays, and cannot be undone by a click."""
        kept = {"moves": [[str(source), str(target)] for source, target in moves], "name": name, "new_name": new_name}
        try:
            self._place().mkdir(parents=True, exist_ok=True)
            replace_file(self._note(), json.dumps(kept).encode("ascii"), fixed_name=True, follow_links=False)
        except OSError:
            _log.exception("The change of %s cannot be undone", name)

    def _last(self) -> _Change | None:
        """The last change; None where there is none that can be undone."""
        try:
            kept = json.loads(read_regular(self._note(), _MOST_NOTE))
            moves = [(Path(source), Path(target)) for source, target in kept["moves"]]
            change = _Change(moves, str(kept["name"]), str(kept["new_name"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return change if change.new_name or (moves and all(target.exists() for _, target in moves)) else None

    def _correct_last_run(self, path: Path, moved: Moves) -> None:
        """Let what is kept about the last run of the embedding in the file `path` name its own files, after its folders were moved."""
        note, run = last_run_file(path), read_last_run(path)
        if not note.is_file():
            return
        settings, before = {**run.settings, "name": path.stem}, run.before
        for old, new in moved:
            settings = {key: _moved(value, old, new) for key, value in settings.items()}
            before = str(_moved(before, old, new))
        try:
            replace(run, settings=settings, before=before).write(note)
        except OSError:
            return  # the copies of the last run cannot be taken back; everything else works


def _moved(value: object, old: Path, new: Path) -> object:
    """A path below the folder `old` as one below `new`; other values as they are."""
    if not isinstance(value, str) or not value:
        return value
    path = Path(value).expanduser().resolve()
    return str(new / path.relative_to(old)) if path == old or old in path.parents else value


def _move(moves: Moves) -> None:
    """Move every file and folder, or none.

    Raises:
        EmbeddingError: one cannot be moved. Those before it are moved back; what cannot be, is named.
    """
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            if target.exists() and not (source.exists() and source.samefile(target)):  # a change of capitals only
                raise FileExistsError(17, f"{target} exists already; move it away first", str(target))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, target)
            done.append((source, target))
    except OSError as error:
        left = [target for source, target in reversed(done) if not _moved_back(target, source)]
        said = f"Some files could not be moved back and lie here now: {', '.join(map(str, left))}" if left else "Nothing is changed"
        raise EmbeddingError(f"{said} ({os_error_text(error)}).") from error


def _moved_back(target: Path, source: Path) -> bool:
    try:
        shutil.move(target, source)
    except OSError:
        return False
    return True


def _free(path: Path) -> Path:
    """`path`, or with a number where that is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name} {number}")
    return free
