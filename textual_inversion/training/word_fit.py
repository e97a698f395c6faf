"""How well words of the checkpoint's own vocabulary fit the pictures: losses of rows that stay the same, and their gradient.

Each row counts as a share of its loss with the first words: so a row with much noise, whose loss is small, counts as much as any other.
Legend: b rows of all batches, n vectors, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.prompts.tokenizer import default_tokenizer
from textual_inversion.training.data.batches import Batch
from textual_inversion.training.search_plan import GRADIENT
from textual_inversion.training.step import row_errors

#: Words without a meaning of their own.
_EMPTY_WORDS = {
    "all",
    "and",
    "are",
    "but",
    "for",
    "from",
    "has",
    "had",
    "into",
    "its",
    "not",
    "over",
    "than",
    "that",
    "the",
    "this",
    "was",
    "with",
}
_LEAST_NORM = 0.3  # times the mean length of words; a shorter row was hardly ever trained
_SHORTEST = 3  # letters of a word
_HALF_SCALE = 1024.0  # of the loss in fp16, whose gradients would vanish


@dataclass
class Budget:
    """What a search may still do.

    Attributes:
        rows: forward passes of one row.
        should_stop: asked before each word is tried; the best words so far are kept.
    """

    rows: int = 1000
    should_stop: Callable[[], bool] = lambda: False

    def allows(self, rows: int) -> bool:
        """Whether so many forward passes may begin."""
        return self.rows >= rows and not self.should_stop()


class WordFit:
    """Measures words for the vectors of one embedding.

    Args:
        batches: b rows in all; their prompts name the embedding's vectors as rows `first_row` to `first_row` + n - 1.
        count: n.

    Attributes:
        rows: b.
        reference: the losses that others are shares of, [b].
    """

    def __init__(
        self,
        model: StableDiffusion,
        batches: Sequence[Batch],
        count: int,
        budget: Budget | None = None,
        *,
        first_row: int = 0,
        clip_skip: int = 1,
    ) -> None:
        self.model, self.batches, self.count = model, batches, count
        self.first_row, self.clip_skip, self.budget = first_row, clip_skip, budget or Budget()
        self.rows = sum(len(batch.latents) for batch in batches)
        self.tokenizer = default_tokenizer()
        self.reference = torch.ones((), device=model.device)

    @cached_property
    def vocabulary(self) -> torch.Tensor:
        """Ids of the words that may be chosen: whole, of plain letters, and known to the checkpoint, int64 [words]."""
        known = torch.ones(len(self.tokenizer.vocabulary), dtype=torch.bool, device=self.model.device)
        for encoder, size in zip(self.model.conditioner.encoders.values(), self.model.words):
            norms = torch.linalg.vector_norm(encoder.token_table.float(), dim=1)
            known &= norms[: len(known)] > _LEAST_NORM * size.norm
        ids = [index for index in known.nonzero()[:, 0].tolist() if _is_word(self.tokenizer.vocabulary[index])]
        return torch.tensor(ids, dtype=torch.int64, device=self.model.device)

    @cached_property
    def words(self) -> torch.Tensor:
        """The vectors of the words that may be chosen, fp32 [words, d]."""
        return self.model.conditioner.rows_of(self.vocabulary)

    def words_as_long_as(self, vector: torch.Tensor) -> torch.Tensor:
        """All words that may be chosen, each with the length that `vector` [d] has for each text encoder, [words, d]."""
        split = self.model.conditioner.split
        words, lengths = split(self.words), {name: torch.linalg.vector_norm(part) for name, part in split(vector[None]).items()}
        return torch.cat([F.normalize(part, dim=1) * lengths[name] for name, part in words.items()], dim=1)

    def vectors_of(self, ids: Sequence[int]) -> torch.Tensor:
        """The vectors of words, fp32 [n, d]."""
        return self.model.conditioner.rows_of(torch.tensor(ids, device=self.model.device))

    @torch.no_grad()
    def losses(self, vectors: torch.Tensor, batches: Sequence[Batch] | None = None) -> torch.Tensor:
        """The loss of each row of some batches, or of all, with vectors [n, d], [b]."""
        padded = self._padded(vectors)
        return torch.cat([self._row_errors(batch, padded) for batch in (self.batches if batches is None else batches)])

    def gradient(self, vectors: torch.Tensor) -> torch.Tensor:
        """The gradient of the mean loss as a share of the reference, [n, d]."""
        leaf = self._padded(vectors).requires_grad_(True)
        total, begin = torch.zeros_like(leaf), 0
        for batch in self.batches:
            losses = self._row_errors(batch, leaf)
            reference = self.reference[begin : begin + len(losses)]
            scale = _HALF_SCALE if self.model.dtype == torch.float16 else 1.0
            (gradient,) = torch.autograd.grad((losses / reference).sum() * scale, leaf)
            total, begin = total + gradient / scale, begin + len(losses)
            self.budget.rows -= (GRADIENT - 1) * len(losses)
        return total[self.first_row :] / begin

    def _row_errors(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        self.budget.rows -= len(batch.latents)
        return row_errors(self.model, batch, vectors, self.clip_skip)

    def _padded(self, vectors: torch.Tensor) -> torch.Tensor:
        """The vectors behind the rows of other embeddings."""
        return torch.cat([vectors.new_zeros(self.first_row, vectors.shape[1]), vectors]).detach()


def _is_word(token: str) -> bool:
    word = token.removesuffix("</w>")
    return word != token and word.isascii() and word.isalpha() and len(word) >= _SHORTEST and word not in _EMPTY_WORDS
