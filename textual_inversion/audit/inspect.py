"""Inspects one embedding file in depth: compares every vector with the words of a checkpoint, and gives a verdict.

It reads only the checkpoint's token tables, a part at a time. So a checkpoint of several GB needs only some MB of memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from textual_inversion.audit import EmbeddingJudgement, FileJudgement, Kind, Vector
from textual_inversion.audit.judge import judge
from textual_inversion.diffusion.checkpoint import token_tables
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats import file_sha256, read_all
from textual_inversion.library.entry import misfit
from textual_inversion.vocabulary import BROKEN, LONG, Lengths, lengths_of, nearest_words, times_longer


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The vocabulary of a checkpoint as vectors.

    Attributes:
        name: the checkpoint's file name.
        tables: text encoder -> its token table [l, d], of any float type.
    """

    name: str
    tables: dict[str, torch.Tensor]

    @classmethod
    def read(cls, path: str | Path) -> TokenTable:
        """Map the tables of a checkpoint file from the disk; raises `CheckpointError` when the file has none."""
        return cls(Path(path).name, token_tables(path))

    @property
    def widths(self) -> dict[str, int]:
        """Text encoder -> width d of its table."""
        return {encoder: table.shape[1] for encoder, table in self.tables.items()}

    @cached_property
    def lengths(self) -> dict[str, Lengths | None]:
        """Text encoder -> the norms of its words; None where every row is zero or not finite."""
        return {encoder: lengths_of(table) for encoder, table in self.tables.items()}

    def table_for(self, encoder: str, width: int) -> str | None:
        """The text encoder whose table fits vectors of `width` under the name `encoder`, or None."""
        widths = self.widths
        if widths.get(encoder) == width:
            return encoder
        # a file and a checkpoint may use different names for a table of unusual width
        return next(iter(widths)) if list(widths.values()) == [width] else None


def inspect_file(path: str | Path, table: TokenTable | None = None) -> FileJudgement:
    """Judge the file at `path` and every vector in it. Never runs code from the file. Bad contents give a verdict, not an error.

    Args:
        path: any file.
        table: a checkpoint's vocabulary to compare with.

    Raises:
        EmbeddingError: the file changed while it was read.
    """
    path = Path(path)
    judged = judge(path)
    embeddings: tuple[EmbeddingJudgement, ...] = ()
    if judged.embeddings:
        stored = (vectors for _, vectors in read_all(path))
        embeddings = tuple(_inspect(embedding, vectors, table) for embedding, vectors in zip(judged.embeddings, stored))
    try:
        sha256, size = file_sha256(path), path.stat().st_size
    except (EmbeddingError, OSError, ValueError):
        sha256, size = "", 0  # the verdict gives the reason
    verdicts = {embedding.verdict for embedding in embeddings}
    verdict = judged.verdict
    if len(verdicts) == 1:
        verdict = f"{len(embeddings)} embeddings, {verdicts.pop()}" if len(embeddings) > 1 else verdicts.pop()
    checkpoint = table.name if table else ""
    return replace(judged, verdict=verdict, embeddings=embeddings, checkpoint=checkpoint, sha256=sha256, size=size)


def _inspect(judged: EmbeddingJudgement, stored: dict[str, torch.Tensor], table: TokenTable | None) -> EmbeddingJudgement:
    """Add the vectors to the judgement, and their comparison with words to the verdict."""
    info, vectors, words = judged.info, {}, {}
    misfits = misfit(info, table.widths).rstrip(".") if table and stored else ""
    without_nearest = "no prompt can use it" if not stored else misfits if table else "give a checkpoint that it is for"
    for encoder, tensor in stored.items():
        rows = tensor.float()  # n d
        nearest: list[tuple[tuple[str, float], ...]] = [()] * len(rows)
        if table and not without_nearest and (key := table.table_for(encoder, info.widths[encoder])):
            nearest = nearest_words(rows, table.tables[key])
            if lengths := table.lengths[key]:
                words[encoder] = lengths
        vectors[encoder] = tuple(_vector(row, near) for row, near in zip(rows, nearest))
    norms = {encoder: [vector.norm for vector in rows if vector.norm] for encoder, rows in vectors.items()}
    clauses = [judged.clause]
    if judged.kind is Kind.OK and (times := times_longer(norms, words)) >= LONG:
        effect = "overtrained or broken" if times >= BROKEN else "it may drown the rest of a prompt"
        clauses.append(f"its vectors are {times:.0f} times longer than words: {effect}")
    if judged.kind is Kind.OK and misfits and table:
        clauses.append(f"not with {table.name}: {misfits}")
    return replace(judged, clause="; ".join(clauses), vectors=vectors, words=words, misfit=misfits, without_nearest=without_nearest)


def _vector(row: torch.Tensor, nearest: tuple[tuple[str, float], ...]) -> Vector:
    norm = float(row.double().norm())
    finite = bool(row.isfinite().all())
    return Vector(norm if finite else None, finite and norm == 0, nearest)
