"""The words of a checkpoint as vectors: how long they are, and which of them are nearest to given vectors.

Legend: l tokens, d width, n vectors. It reads a table a part at a time, so a table on the disk needs little memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from textual_inversion.prompts.tokenizer import Tokenizer, default_tokenizer

NEAREST_WORDS = 5
LONG, BROKEN = 10, 30  # times the length of words; normal training reaches LONG after some thousand steps
_ROWS_AT_ONCE = 4096
_NO_COSINE = -2.0
Nearest = tuple[tuple[str, float], ...]  # words with their cosines, the nearest first


@dataclass(frozen=True)
class Lengths:
    """Norms of the words of a token table (without rows of zeros): the median, and the range of the middle 90 %."""

    median: float
    low: float
    high: float


def times_longer(norms: Mapping[str, Sequence[float | None]], lengths: Mapping[str, Lengths]) -> float:
    """The ratio of the vectors' median norm to that of words, for the text encoder with the largest ratio; 0 when unknown.

    Args:
        norms: text encoder -> the norm of each vector; None where that is not finite, which makes the ratio infinite.
        lengths: text encoder -> the norms of words.
    """
    ratios = [0.0]
    for encoder, words in lengths.items():
        known = [math.inf if norm is None else norm for norm in norms.get(encoder, ())]
        if known and words.median:
            ratios.append(median(known) / words.median)
    return max(ratios)


def lengths_of(table: torch.Tensor) -> Lengths | None:
    """The norms of the words in `table` [l, d]; None where every row is zero or not finite."""
    norms = torch.cat([part.norm(dim=1) for part in _parts(table)])  # l
    norms = norms[norms.isfinite() & (norms > 0)]
    if not len(norms):
        return None
    low, median, high = torch.quantile(norms.cpu(), torch.tensor([0.05, 0.5, 0.95])).tolist()
    return Lengths(median, low, high)


def nearest_words(rows: torch.Tensor, table: torch.Tensor, count: int = NEAREST_WORDS) -> list[Nearest]:
    """The nearest words of each of `rows` [n, d] in `table` [l, d] by cosine; none for rows without a direction."""
    unit = torch.nn.functional.normalize(rows, dim=1)  # n d
    cosines = torch.cat([_cosines(part, unit) for part in _parts(table)])  # l n
    values, indices = cosines.topk(min(count, len(table)), dim=0)  # count n
    clear = rows.isfinite().all(dim=1) & rows.any(dim=1)
    tokenizer = default_tokenizer()
    return [
        tuple((_word(tokenizer, token), round(cosine, 4)) for token, cosine in zip(tokens, cosines) if cosine > _NO_COSINE) if fine else ()
        for tokens, cosines, fine in zip(indices.T.tolist(), values.T.tolist(), clear.tolist())
    ]


def _parts(table: torch.Tensor) -> Iterator[torch.Tensor]:
    """The table as fp32, some rows at a time."""
    for first in range(0, len(table), _ROWS_AT_ONCE):
        yield table[first : first + _ROWS_AT_ONCE].detach().float()


def _cosines(part: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Cosine of each word [l, d] with each unit vector [n, d]; `_NO_COSINE` for words without a direction."""
    cosines = torch.nn.functional.normalize(part, dim=1) @ unit.T  # l n
    known = part.any(dim=1, keepdim=True) & cosines.isfinite()
    return cosines.where(known, torch.full_like(cosines, _NO_COSINE))


def _word(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token for people: `cat`, or `cat…` when the token is only the beginning of a word."""
    if token >= len(tokenizer.vocabulary):
        return f"token {token}"
    whole = tokenizer.vocabulary[token].endswith(("</w>", "|>"))
    return tokenizer.word(token) + ("" if whole else "…")
