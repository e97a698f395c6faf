"""Judges embedding files: `judge` one file, `scan` a folder, `inspect` one file in depth. Defines the result classes of all three."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from textual_inversion.files import short_hash

if TYPE_CHECKING:
    from pathlib import Path

    from textual_inversion.formats import FileInfo
    from textual_inversion.vocabulary import Lengths


class Kind(str, Enum):
    """The kinds of files and embeddings, from the best to the worst. The values appear in messages and JSON."""

    OK = "ok"
    UNUSABLE = "unusable"  # intact, but no prompt can use it
    NOT_AN_EMBEDDING = "not an embedding"
    DAMAGED = "damaged"
    UNCHECKED = "unchecked"  # unreadable, or too large for a check
    UNSAFE = "unsafe"  # a program that loads it may run code

    def __str__(self) -> str:
        return self.value

    @property
    def severity(self) -> int:
        """0 for the best kind; larger is worse."""
        return list(Kind).index(self)


@dataclass(frozen=True)
class Vector:
    """One vector of an embedding.

    Attributes:
        norm: its length; None when it holds NaN or infinity.
        zero: whether all its values are 0.
        nearest: up to five words of the vocabulary with their cosines, the nearest first. A token that is only the beginning of a word
            ends in `…`. Empty without a vocabulary that fits.
    """

    norm: float | None
    zero: bool
    nearest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class EmbeddingJudgement:
    """One embedding of a file. Only `inspect` fills the fields from `vectors` on.

    Attributes:
        info: the file's facts about it.
        kind: `OK`, `UNUSABLE` or `DAMAGED`.
        clause: the verdict without a full stop, such as `usable with SD1 checkpoints`.
        vectors: text encoder -> its vectors; empty for an embedding that no prompt can use.
        words: text encoder -> norms of the checkpoint's words; empty without a checkpoint that fits.
        misfit: one clause why the embedding does not fit the checkpoint; empty when it does or there is none.
        without_nearest: one clause why nearest words are left out; empty when they are not.
    """

    info: FileInfo
    kind: Kind
    clause: str
    vectors: dict[str, tuple[Vector, ...]] = field(default_factory=dict)
    words: dict[str, Lengths] = field(default_factory=dict)
    misfit: str = ""
    without_nearest: str = ""

    @property
    def verdict(self) -> str:
        """One sentence."""
        return f"{self.clause}."


@dataclass(frozen=True, eq=False)
class FileJudgement:
    """One file. Only `inspect` fills `checkpoint`, `sha256` and `size`.

    Attributes:
        path: the file.
        kind: for several embeddings, `DAMAGED` if one is damaged, else `OK` if one is usable.
        verdict: one sentence that does not name the file.
        embeddings: the embeddings in it; empty unless the file could be read.
        dangerous: a program that unpickles the file might run code: the file is unsafe, or a pickle too damaged for a check.
        ordinary: the file is a picture without an embedding, such as a preview.
        checkpoint: name of the checkpoint used for comparison; empty for none.
        sha256: of the file, 64 hex digits; empty when it cannot be read.
        size: bytes; 0 when it cannot be read.
    """

    path: Path
    kind: Kind
    verdict: str
    embeddings: tuple[EmbeddingJudgement, ...] = ()
    dangerous: bool = False
    ordinary: bool = False
    checkpoint: str = ""
    sha256: str = ""
    size: int = 0

    @property
    def infotext_hash(self) -> str:
        """As in an infotext's `TI hashes`."""
        return short_hash(self.sha256)
