"""The file of an embedding that is trained further: found by its name, never written over where it holds more, or another's work.

Knows nothing of models, data or settings.
"""

from __future__ import annotations

from pathlib import Path

import torch

from textual_inversion import formats
from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError, InvalidNameError, TextualInversionError

_Stamp = tuple[int, int, int]  # inode, bytes, nanoseconds of the last change

_WRITTEN = (".safetensors", ".pt")  # the first one counts where both are there


class OwnFile:
    """The file that a run writes its vectors to, as long as nobody else does.

    Args:
        path: where it lies.
        embedding: what was read from it.
    """

    def __init__(self, path: Path, embedding: Embedding) -> None:
        self.path = path
        self._stamp: _Stamp | None = None
        self._vectors = _copies(embedding)

    def write(self, embedding: Embedding) -> None:
        """Replace the file.

        Raises:
            EmbeddingError: it holds other vectors than this run has last read or written, such as those of another program that trains the
                same word, and stays as it is; or it cannot be written.
        """
        if self._is_anothers():
            raise EmbeddingError(f"{self.path} was written by another program meanwhile, and stays as that has left it.")
        formats.save(embedding, self.path, overwrite=True)
        self._stamp, self._vectors = _stamp(self.path), _copies(embedding)

    def _is_anothers(self) -> bool:
        now = _stamp(self.path)
        if now is None or now == self._stamp:
            return False
        try:
            theirs, ours = formats.load(self.path).vectors, self._vectors
        except TextualInversionError:
            return False  # it holds nothing to lose
        return theirs.keys() != ours.keys() or not all(torch.equal(theirs[key], ours[key]) for key in ours)


def _copies(embedding: Embedding) -> dict[str, torch.Tensor]:
    """Its vectors, which training goes on in, as they are now."""
    return {key: vectors.detach().cpu().clone() for key, vectors in embedding.vectors.items()}


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def find_embedding(folder: Path, name: str) -> tuple[Path, Embedding]:
    """File and contents of the embedding `name`; the file is one that training may replace.

    Raises:
        InvalidNameError: a name with a path in it.
        EmbeddingError: there is none, its file cannot be read or is of a kind that training does not write, or the file holds more
            than this embedding: other words, the LoRA around it, or one half of an SDXL embedding.
    """
    if any(sign in name for sign in "/\\\0"):
        raise InvalidNameError(f"The name {name!r} has a path in it; give a name only, and choose the folder separately.")
    path = _path_of(folder, name)
    words = [info.word for info in formats.describe_all(path) if info.word is not None]
    if words:
        shown = f"{words[0]!r}" if len(words) == 1 else f"{words[0]!r} and {len(words) - 1} more"
        raise EmbeddingError(
            f"{path} holds {shown} beside or within other data, which training would write over; take one out to a file of its own "
            f"first: textual-inversion convert {path.name} NEW.safetensors --word WORD."
        )
    _check_whole(path)
    return path, formats.load(path, name)


def _path_of(folder: Path, name: str) -> Path:
    """The file; endings may have capitals."""
    for ending in _WRITTEN:
        if (path := folder / f"{name}{ending}").is_file():
            return path
    try:
        found = sorted(path for path in folder.iterdir() if path.stem == name and path.suffix.lower() in formats.READ_ENDINGS)
    except OSError:
        found = []  # no such folder
    if written := [path for path in found if path.suffix.lower() in _WRITTEN]:
        return written[0]
    embeddings = [path for path in found if path.suffix.lower() not in formats.PICTURE_ENDINGS or _carries_one(path)]
    if embeddings:
        raise EmbeddingError(
            f"{embeddings[0]} holds the embedding {name!r}, but training writes .safetensors and .pt only; convert it first: "
            f"textual-inversion convert {embeddings[0].name} {name}.safetensors."
        )
    raise EmbeddingError(f"There is no embedding {name!r} in {folder}; create it first: textual-inversion create {name} --init TEXT.")


def _carries_one(picture: Path) -> bool:
    """Whether the picture is an embedding rather than a preview of one that is gone."""
    try:
        return bool(formats.describe_all(picture))
    except EmbeddingError:
        return False


def _check_whole(path: Path) -> None:
    """Refuse the first of the two files in which diffusers' example keeps an SDXL embedding."""
    other = path.with_name(f"{path.stem}_2{path.suffix}")
    try:
        halves = formats.describe(path).widths == {"clip_l": 768} and other.is_file() and formats.describe(other).widths == {"clip_g": 1280}
    except EmbeddingError:
        return  # the other file is no embedding
    if halves:
        raise EmbeddingError(
            f"{path} is one half of an SDXL embedding, the other is {other.name}; rename one of them to train it by itself."
        )
