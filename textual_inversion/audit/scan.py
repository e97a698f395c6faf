"""Judges every file of a folder. Moves dangerous files to quarantine and converts harmless files to safetensors.

Scanning changes nothing. `quarantine` and `to_safetensors` act on one file each. They refuse a file that has changed since its
judgement or that lies behind a link, and they never overwrite a file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

from textual_inversion.audit import FileJudgement, Kind
from textual_inversion.audit.judge import judge
from textual_inversion.embedding import Embedding, word_name
from textual_inversion.errors import ConfigError, EmbeddingError, NameTakenError, TextualInversionError
from textual_inversion.files import FileStamp, open_regular, os_error_words
from textual_inversion.formats import PICTURE_ENDINGS, READ_ENDINGS, load, save

QUARANTINE, ORIGINALS = "quarantine", "originals"
UNSAFE_ENDING, ORIGINAL_ENDING = ".unsafe", ".original"  # no program loads files of these endings
OPTIMIZER_ENDING = ".optim"  # optimizer state for resuming, which trainers keep beside an embedding; also a pickle
_LONGEST_NAME = 240  # bytes; file systems allow 255
_STATE = f"{Kind.NOT_AN_EMBEDDING}: an optimizer's state, from which training goes on; no prompt needs it."
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class ScannedFile(FileJudgement):
    """A judged file of a folder, or a folder below it that cannot be listed.

    Attributes:
        folder: the folder that was scanned.
        stamp: the file's stamp from before the judgement; None when the file had none.
    """

    folder: Path
    stamp: FileStamp | None = None

    @property
    def convertible(self) -> bool:
        """Whether `to_safetensors` can convert the file: it is harmless, and programs unpickle it."""
        return self.kind is Kind.OK and self.path.suffix.lower() not in (".safetensors", OPTIMIZER_ENDING, *PICTURE_ENDINGS)


def scan_folder(folder: str | Path, progress: Progress | None = None) -> Iterator[ScannedFile]:
    """Judge every file under `folder` whose ending fits an embedding or an optimizer state. Changes nothing.

    The results come in the order of the paths.

    Args:
        folder: searched with its subfolders, links to folders included.
        progress: called before each file with (files done, files in all, file's name).

    Raises:
        ConfigError: the folder does not exist or cannot be listed.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise ConfigError(f"There is no folder {folder}; give the folder of your embeddings.", path=folder)
    paths, unreadable = _files(folder)
    if folder in unreadable:
        raise ConfigError(f"The folder {folder} cannot be listed: {unreadable[folder]}.", path=folder)
    for path, reason in unreadable.items():
        verdict = f"{Kind.UNCHECKED}: the folder cannot be listed: {reason}."
        yield ScannedFile(path, Kind.UNCHECKED, verdict, folder=folder)
    for done, path in enumerate(paths):
        if progress:
            progress(done, len(paths), path.name)
        stamp = FileStamp.of(path)  # taken before reading, so a change during reading is noticed
        judged = judge(path)
        is_state = judged.kind is Kind.NOT_AN_EMBEDDING and path.suffix.lower() == OPTIMIZER_ENDING
        verdict = _STATE if is_state else judged.verdict
        results = (judged.embeddings, judged.dangerous, judged.ordinary)
        yield ScannedFile(path, judged.kind, verdict, *results, folder=folder, stamp=stamp)


def quarantine(file: ScannedFile, folder: str | Path | None = None) -> Path:
    """Move a dangerous file to a place where no program loads it, and return its new path. Keeps name and subfolder, adds `.unsafe`.

    Args:
        file: a dangerous file.
        folder: the destination; None takes `quarantine` in the scanned folder.

    Raises:
        EmbeddingError: the file is not dangerous, has changed since its judgement, is or lies behind a link, or cannot be moved. It stays.
    """
    if not file.dangerous:
        raise EmbeddingError("it is not dangerous, so it stays where it is.", path=file.path)
    return _move(file, Path(folder) if folder else file.folder / QUARANTINE, UNSAFE_ENDING)


def to_safetensors(file: ScannedFile, *, replace: bool = False) -> list[Path]:
    """Write the embeddings of a harmless file beside it as safetensors and return the new files. Existing files stay.

    Each of several embeddings in the file gets its own file, named after its word.

    Args:
        file: its `convertible` is true.
        replace: then move the original to `originals` in the scanned folder, where no program loads it.

    Raises:
        EmbeddingError: a file with the new name has other contents, the original has changed since its judgement or (with `replace`)
            has data that would be lost, or a file cannot be written or moved. The original stays.
    """
    if not file.convertible:
        raise EmbeddingError("there is nothing to convert.", path=file.path)
    _check_same(file)
    infos = [embedding.info for embedding in file.embeddings]
    if replace and (lost := [info.word for info in infos if info.unusable]):
        raise EmbeddingError(f"{lost[0]!r} in it cannot be converted, so it was not replaced.", path=file.path)
    written = [path for info in infos if not info.unusable and (path := _convert(file.path, info.word))]
    if replace:
        _move(file, file.folder / ORIGINALS, ORIGINAL_ENDING)
        if len(infos) == 1:
            _rename_state(file.path, _target(file.path, infos[0].word))
    return written


def _rename_state(path: Path, target: Path) -> None:
    """Rename the optimizer state beside `path` so that training finds it beside `target`. An existing state of that name stays."""
    state, renamed = (file.with_name(file.name + OPTIMIZER_ENDING) for file in (path, target))
    with suppress(OSError):  # training can resume without the state
        if not os.path.lexists(renamed):
            state.rename(renamed)


def _files(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The files to judge under `folder`, sorted, and each folder that cannot be listed -> the reason."""
    paths: list[Path] = []
    unreadable: dict[Path, str] = {}
    seen: set[str] = set()

    def note(error: OSError) -> None:
        unreadable[Path(error.filename or folder)] = os_error_words(error)

    for root, folders, files in os.walk(folder, followlinks=True, onerror=note):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()  # a link back to it would give an endless loop
            continue
        seen.add(real)
        folders.sort()
        paths += [Path(root, name) for name in files if name.lower().endswith((*READ_ENDINGS, OPTIMIZER_ENDING))]
    return sorted(paths), unreadable


def _check_same(file: ScannedFile) -> None:
    """Refuse a file that has changed since its judgement, or that is not in the scanned folder."""
    path = file.path
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            raise EmbeddingError(f"it is a link to {os.path.realpath(path)}, which stays untouched.", path=path)
    except OSError as error:
        raise EmbeddingError(f"it cannot be found any more: {os_error_words(error)}.", path=path) from error
    inside = Path(os.path.realpath(path.parent))
    top = Path(os.path.realpath(file.folder))
    if inside != top and top not in inside.parents:
        raise EmbeddingError(f"a link leads to it in {inside}, outside of the scanned folder; scan that folder itself.", path=path)
    if file.stamp is None or FileStamp.of(path) != file.stamp:
        raise EmbeddingError("it changed since it was judged; scan again.", path=path)


def _target(path: Path, word: str | None) -> Path:
    return path.with_name(f"{word_name(word) if word else path.stem}.safetensors")


def _convert(path: Path, word: str | None) -> Path | None:
    """Write one embedding of the file beside it. Return None when the new file already exists with the same vectors."""
    embedding = load(path, word=word)
    target = _target(path, word)
    try:
        save(embedding, target)
    except NameTakenError as error:
        if _same_vectors(target, embedding):
            return None
        raise EmbeddingError(f"{target.name} is there already and holds something else; rename one of them.", path=target) from error
    if not _same_vectors(target, embedding):
        raise EmbeddingError(f"{target.name} does not read back as it was written; check the disk.", path=target)
    return target


def _same_vectors(path: Path, embedding: Embedding) -> bool:
    try:
        existing = load(path).vectors
    except TextualInversionError:
        return False
    return existing.keys() == embedding.vectors.keys() and all(torch.equal(existing[key], rows) for key, rows in embedding.vectors.items())


# moving ---------------------------------------------------------------------------------------------------------------


def _move(file: ScannedFile, folder: Path, ending: str) -> Path:
    """Move the judged file below `folder`, keep its subfolder and add `ending`. Overwrites nothing; a failure changes nothing."""
    _check_same(file)
    parent = folder / file.path.relative_to(file.folder).parent
    target: Path | None = None
    try:
        os.makedirs(parent, exist_ok=True)
        target = _reserve(parent, file.path.name, ending)
        _replace(file.path, target)
    except (OSError, ValueError) as error:
        if target is not None and os.path.lexists(file.path):
            target.unlink(missing_ok=True)
        raise EmbeddingError(f"it was not moved to {parent}: {os_error_words(error)}.", path=file.path) from error
    return target


def _reserve(folder: Path, name: str, ending: str) -> Path:
    """Create an empty file for `name` in `folder`, which reserves the name against other programs."""
    while len(os.fsencode(name)) > _LONGEST_NAME:
        name = name[1:]
    for number in count(1):
        path = folder / f"{name}{'' if number == 1 else f'-{number}'}{ending}"
        try:
            path.open("xb").close()
        except FileExistsError:
            continue
        break
    return path


def _replace(source: Path, target: Path) -> None:
    """Move `source` over the empty `target` from `_reserve`. Between disks, copy it first."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with open_regular(source) as old, open_regular(target, "wb") as new:
            while part := old.read(2**20):
                new.write(part)
            new.flush()
            os.fsync(new.fileno())
        source.unlink()
