"""Looks into one embedding file: its vectors beside a checkpoint's vocabulary, and a verdict. Knows nothing of folders or pages.

Only the checkpoint's token tables are read, a part at a time, so that a checkpoint of several GB costs some MB of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from textual_inversion.audit.judge import Found, Judgement, judge
from textual_inversion.diffusion.checkpoint import token_tables
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats import FileInfo, file_sha256, read_all
from textual_inversion.library.entry import misfit
from textual_inversion.prompts.tokenizer import Tokenizer, default_tokenizer

NEAREST_WORDS = 5
LONG, BROKEN = 10, 30  # times the length of words; plain training reaches the first after some thousand steps
_ROWS_AT_ONCE = 4096
_HASH_DIGITS = 12
_NO_COSINE = -2.0


@dataclass(frozen=True)
class Lengths:
    """Norms of the words of a token table, rows of zeros left out: the median and where the middle 90 % lie."""

    median: float
    low: float
    high: float


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
        """The tables of a checkpoint file, mapped from the disk; raises `CheckpointError` when it has none."""
        return cls(Path(path).name, token_tables(path))

    @property
    def widths(self) -> dict[str, int]:
        """Text encoder -> width d of its table."""
        return {encoder: table.shape[1] for encoder, table in self.tables.items()}

    @cached_property
    def lengths(self) -> dict[str, Lengths | None]:
        """Text encoder -> the norms of its words; None where every row is zero or not finite."""
        return {encoder: _lengths(table) for encoder, table in self.tables.items()}

    def table_for(self, encoder: str, width: int) -> str | None:
        """The text encoder whose table belongs to vectors of `width` that a file names `encoder`, or None."""
        widths = self.widths
        if widths.get(encoder) == width:
            return encoder
        # tables of unusual widths may be named differently by a file and by a checkpoint
        return next(iter(widths)) if list(widths.values()) == [width] else None


@dataclass(frozen=True)
class Vector:
    """One vector of an embedding.

    Attributes:
        norm: its length; None when it holds NaN or infinity.
        zero: whether all its values are 0.
        nearest: up to five words of the vocabulary and their cosines, the nearest first; a word that goes on, such as the
            beginning of a longer one, ends in `…`. Empty without a vocabulary that fits.
    """

    norm: float | None
    zero: bool
    nearest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Report:
    """One embedding of the file.

    Attributes:
        info: what the file says about it.
        kind: `ok`, `unusable` or `damaged`.
        verdict: one sentence.
        vectors: text encoder -> its vectors; empty for what no prompt can use.
        words: text encoder -> norms of the words of the checkpoint; empty without a checkpoint that fits.
        misfit: one clause why it does not fit the checkpoint; empty when it does or there is none.
        without_nearest: one clause why nearest words are left out; empty when they are not.
    """

    info: FileInfo
    kind: str
    verdict: str
    vectors: dict[str, tuple[Vector, ...]]
    words: dict[str, Lengths]
    misfit: str
    without_nearest: str


@dataclass(frozen=True, eq=False)
class Inspection:
    """A file, seen from all sides.

    Attributes:
        path: the file.
        kind: one of `verdict.KINDS`.
        verdict: one sentence.
        embeddings: what it holds; empty when it cannot be read as an embedding.
        checkpoint: name of the checkpoint that it was compared with; empty for none.
        sha256: of the file, 64 hex digits; empty when it cannot be read.
        size: bytes; 0 when it cannot be read.
    """

    path: Path
    kind: str
    verdict: str
    embeddings: tuple[Report, ...]
    checkpoint: str
    sha256: str
    size: int

    @property
    def infotext_hash(self) -> str:
        """The first 12 hex digits of the sha256, as in an infotext's `TI hashes`."""
        return self.sha256[:_HASH_DIGITS]


def inspect_file(path: str | Path, table: TokenTable | None = None) -> Inspection:
    """What the file at `path` holds and whether it is any good; runs nothing of it and raises nothing for what is in it.

    Args:
        path: any file.
        table: a checkpoint's vocabulary to compare with.

    Raises:
        EmbeddingError: the file changed while it was read.
    """
    path = Path(path)
    judged = judge(path)
    reports = tuple(_reports(path, judged.found, table)) if judged.kind != "unsafe" else ()
    try:
        sha256, size = file_sha256(path), path.stat().st_size
    except (EmbeddingError, OSError, ValueError):
        sha256, size = "", 0  # the verdict says why
    verdict = reports[0].verdict if len(reports) == 1 else _joint_verdict(judged, reports)
    return Inspection(path, judged.kind, verdict, reports, table.name if table else "", sha256, size)


def _joint_verdict(judged: Judgement, reports: tuple[Report, ...]) -> str:
    """Of several embeddings: the one that all share, or each by its word."""
    verdicts = {report.verdict for report in reports}
    if len(verdicts) != 1:
        return judged.sentence
    return f"{len(reports)} embeddings, {verdicts.pop()}"


def _reports(path: Path, found: tuple[Found, ...], table: TokenTable | None) -> Iterator[Report]:
    if not found:
        return
    for one, (info, stored) in zip(found, read_all(path), strict=False):
        rows = {encoder: tensor.float() for encoder, tensor in stored.items()}
        yield _with_verdict(_report(one, info, rows, table), table.name if table else "")


def _report(one: Found, info: FileInfo, rows: dict[str, torch.Tensor], table: TokenTable | None) -> Report:
    reason = misfit(info, table.widths).rstrip(".") if table and rows else ""
    left_out = "no prompt can use it" if not rows else reason if table else "give a checkpoint that it is for"
    known = {encoder: table.table_for(encoder, info.widths[encoder]) for encoder in rows} if table and not left_out else {}
    vectors, words = {}, {}
    for encoder, tensor in rows.items():
        key = known.get(encoder)
        nearest = _nearest(tensor, table.tables[key]) if table and key else [()] * len(tensor)
        vectors[encoder] = tuple(_vector(row, near) for row, near in zip(tensor, nearest))
        if table and key and (lengths := table.lengths[key]):
            words[encoder] = lengths
    return Report(one.info, one.kind, f"{one.sentence}.", vectors, words, reason, left_out)


def _with_verdict(report: Report, checkpoint: str) -> Report:
    """The report with a verdict that also says how the vectors compare with words, and whether they fit."""
    clauses = [report.verdict.rstrip(".")]
    if report.kind == "ok" and (times := _times_longer(report)) >= LONG:
        effect = "overtrained or broken" if times >= BROKEN else "it may drown the rest of a prompt"
        clauses.append(f"its vectors are {times:.0f} times longer than words: {effect}")
    if report.kind == "ok" and report.misfit:
        clauses.append(f"not with {checkpoint}: {report.misfit}")
    return replace(report, verdict="; ".join(clauses) + ".")


def _times_longer(report: Report) -> float:
    """The median norm of its vectors over that of words, at the text encoder where it is largest; 0 when unknown."""
    times = [0.0]
    for encoder, lengths in report.words.items():
        norms = [vector.norm for vector in report.vectors[encoder] if vector.norm]
        if norms and lengths.median:
            times.append(float(torch.tensor(norms).median()) / lengths.median)
    return max(times)


def _vector(row: torch.Tensor, nearest: tuple[tuple[str, float], ...]) -> Vector:
    norm = float(row.double().norm())
    finite = bool(row.isfinite().all())
    return Vector(norm if finite else None, finite and norm == 0, nearest)


# the vocabulary --------------------------------------------------------------------------------------------------------


def _parts(table: torch.Tensor) -> Iterator[torch.Tensor]:
    """The table as fp32, some rows at a time."""
    for first in range(0, len(table), _ROWS_AT_ONCE):
        yield table[first : first + _ROWS_AT_ONCE].float()


def _lengths(table: torch.Tensor) -> Lengths | None:
    norms = torch.cat([part.norm(dim=1) for part in _parts(table)])  # l
    norms = norms[norms.isfinite() & (norms > 0)]
    if not len(norms):
        return None
    low, median, high = torch.quantile(norms, torch.tensor([0.05, 0.5, 0.95])).tolist()
    return Lengths(median, low, high)


def _nearest(rows: torch.Tensor, table: torch.Tensor) -> list[tuple[tuple[str, float], ...]]:
    """The nearest words of each of `rows` [n, d] in `table` [l, d] by cosine; none for rows without a direction."""
    unit = torch.nn.functional.normalize(rows, dim=1)  # n d
    cosines = torch.cat([_cosines(part, unit) for part in _parts(table)])  # l n
    values, indices = cosines.topk(min(NEAREST_WORDS, len(table)), dim=0)  # 5 n
    clear = rows.isfinite().all(dim=1) & rows.any(dim=1)
    tokenizer = default_tokenizer()
    return [
        tuple((_word(tokenizer, token), round(cosine, 4)) for token, cosine in zip(tokens, cosines) if cosine > _NO_COSINE) if fine else ()
        for tokens, cosines, fine in zip(indices.T.tolist(), values.T.tolist(), clear.tolist())
    ]


def _cosines(part: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Cosine of each word [l, d] with each unit vector [n, d]; `_NO_COSINE` for words without a direction."""
    cosines = torch.nn.functional.normalize(part, dim=1) @ unit.T  # l n
    return cosines.where(part.any(dim=1, keepdim=True) & cosines.isfinite(), torch.tensor(_NO_COSINE))


def _word(tokenizer: Tokenizer, token: int) -> str:
    """A token as a person reads it: `cat`, or `cat…` where more letters follow."""
    if token >= len(tokenizer.vocabulary):
        return f"token {token}"
    whole = tokenizer.vocabulary[token].endswith(("</w>", "|>"))
    return tokenizer.word(token) + ("" if whole else "…")
