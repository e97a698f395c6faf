"""Finds words of the checkpoint's own vocabulary that describe the pictures: to start from, and early in a run.

Words are chosen by the loss on batches that stay the same, each row as a share of its loss with the first words: so a row with much
noise, whose loss is small, counts as much as any other. A gradient picks the words that are tried (AutoPrompt, arXiv 2010.15980).
Legend: b rows of all batches, n vectors, d width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F

from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.prompts.tokenizer import default_tokenizer
from textual_inversion.training.data.batches import Batch
from textual_inversion.training.step import row_errors

_FIRST_WORDS = ("shape", "object", "person", "man", "woman", "animal", "dog", "cat", "car", "building", "landscape", "food", "toy", "style")
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
_TRIED, _TRIED_LATER = 4, 6  # words tried at each place, before and after vectors have begun to learn
_MUCH_BETTER = 0.9  # share of the loss that a word must leave to replace what was learned
_LEAST_NORM = 0.3  # times the mean length of words; a shorter row was hardly ever trained
_SHORTEST = 3  # letters of a word
#: Forward passes of one row that a backward pass costs beside its forward pass.
_BACKWARD = 2
_DONE_LATER = 0.6  # share of its rows that a word tried on the way takes; most are given up after half of them
_HALF_SCALE = 1024.0  # of the loss in fp16, whose gradients would vanish


def cost_on_the_way(count: int, rows: int, budget: int) -> int:
    """Forward passes of one row that `WordSearch.refine` does.

    Args:
        count: vectors.
        rows: that words are compared by.
        budget: that it may do.
    """
    gradient, at_a_place = rows * (1 + _BACKWARD), _DONE_LATER * rows * _TRIED_LATER
    if budget - rows < gradient + rows * _TRIED_LATER:
        return rows
    return int(rows + gradient + min(count * at_a_place, budget - rows - gradient))


class WordSearch:
    """Searches the words for the vectors of one embedding.

    Args:
        batches: b rows in all; their prompts name the embedding's vectors as rows `first_row` to `first_row` + n - 1.
        count: n.
        should_stop: asked before each word is tried; the best words so far are kept.

    Attributes:
        rows_left: forward passes of one row that may still be done. A place is begun only where it can be finished; the nouns to begin
            with are compared in any case.
    """

    def __init__(
        self,
        model: StableDiffusion,
        batches: Sequence[Batch],
        count: int,
        *,
        first_row: int = 0,
        clip_skip: int = 1,
        rows_left: int = 1000,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.batches, self.count = model, batches, count
        self.first_row, self.clip_skip, self.rows_left, self.should_stop = first_row, clip_skip, rows_left, should_stop
        self.tokenizer = default_tokenizer()
        self.reference = torch.ones((), device=model.device)  # losses [b] with the first words

    def run(self) -> list[str]:
        """The words that were found, one for each vector; none where the checkpoint knows no word to begin with."""
        ids = self._first()
        if not ids:
            return []
        best, unchanged, place = 1.0, 0, 0
        while unchanged < self.count and self._can_afford(_TRIED) and not self.should_stop():
            found, loss = self._improve(ids, place, best)
            unchanged = unchanged + 1 if found == ids else 0
            ids, best, place = found, loss, (place + 1) % self.count
        return [self.tokenizer.word(index) for index in ids]

    def refine(self, vectors: torch.Tensor) -> list[tuple[int, str]]:
        """Replace vectors that have begun to learn by words, of the same length, where those fit the pictures much better.

        What a vector has learned so far tells a gradient far more than a noun does: it proposes words that the start could not. So
        vectors leave a wrong direction that small steps would not.

        Args:
            vectors: fp32 [n, d], changed in place.

        Returns:
            (vector, word) of those that were replaced.
        """
        replaced: list[tuple[int, str]] = []
        self.reference = self._losses_of(vectors)
        best, slope = 1.0, None  # the gradient stays right until a vector is replaced
        for place in range(self.count):
            if not self._can_afford(_TRIED_LATER) or self.should_stop():
                break
            slope = self._gradient(vectors) if slope is None else slope
            if not bool(torch.isfinite(slope[place]).all()):
                continue
            if found := self._better_word(vectors, place, slope[place], best):
                (word, vectors[place], best), slope = found, None
                replaced.append((place, word))
        return replaced

    def _better_word(self, vectors: torch.Tensor, place: int, slope: torch.Tensor, best: float) -> tuple[str, torch.Tensor, float] | None:
        """The word for a place that leaves the least loss, with its vector and that loss; None where no word is much better.

        Args:
            slope: gradient of the loss by the vector at this place, [d].
            best: the loss so far.
        """
        words = self._words_as_long_as(vectors[place])
        promised = (words - vectors[place]) @ slope
        chosen, bound = None, _MUCH_BETTER * best
        for number in promised.argsort()[:_TRIED_LATER].tolist():
            if self.should_stop():
                break
            tried = vectors.clone()
            tried[place] = words[number]
            if (loss := self._relative_loss(tried, give_up_above=best)) < bound:
                chosen, bound = number, loss
        if chosen is None:
            return None
        return self.tokenizer.word(int(self._vocabulary[chosen])), words[chosen], bound

    def _relative_loss(self, vectors: torch.Tensor, *, give_up_above: float) -> float:
        """The loss of vectors as a share of the first one's; infinity where half of the rows are above a bound, which saves the others."""
        half = (len(self.batches) + 1) // 2
        losses = self._losses_of(vectors, self.batches[:half])
        if float((losses / self.reference[: len(losses)]).log().mean().exp()) > give_up_above:
            return math.inf
        losses = torch.cat([losses, *([self._losses_of(vectors, self.batches[half:])] if half < len(self.batches) else [])])
        return float((losses / self.reference).log().mean().exp())

    def vectors_of(self, words: Sequence[str]) -> torch.Tensor:
        """The vectors of found words, fp32 [n, d] on the CPU."""
        return self._vectors([self.tokenizer.encode(word)[0] for word in words]).cpu()

    def _words_as_long_as(self, vector: torch.Tensor) -> torch.Tensor:
        """All words that may be chosen, each with the length that `vector` [d] has for each text encoder, [words, d]."""
        split = self.model.conditioner.split
        words, lengths = split(self._all_words), {name: torch.linalg.vector_norm(part) for name, part in split(vector[None]).items()}
        return torch.cat([F.normalize(part, dim=1) * lengths[name] for name, part in words.items()], dim=1)

    def _first(self) -> list[int]:
        """One noun for all places: the one that fits best."""
        known = [ids[0] for word in _FIRST_WORDS if len(ids := self.tokenizer.encode(word)) == 1 and ids[0] in self._vocabulary_set]
        losses = {index: self._losses([index] * self.count) for index in known}
        if not losses:
            return []
        # the logarithm gives each row the same say, whatever its noise
        best = min(losses, key=lambda index: float(losses[index].log().mean()))
        self.reference = losses[best]
        return [best] * self.count

    def _improve(self, ids: list[int], place: int, best: float) -> tuple[list[int], float]:
        """The words with the best one at a place, and their loss."""
        vectors = self._vectors(ids)
        slope = self._gradient(vectors)[place]
        promised = (self._all_words - vectors[place]) @ slope  # change of the loss, to first order
        chosen = ids
        for index in self._vocabulary[promised.argsort()[: _TRIED + 1]].tolist():
            if index == ids[place] or self.should_stop():
                continue
            tried = [*ids[:place], index, *ids[place + 1 :]]
            loss = float((self._losses(tried) / self.reference).mean())
            if loss < best:
                chosen, best = tried, loss
        return chosen, best

    def _can_afford(self, words: int) -> bool:
        """Whether a gradient and so many words tried are left."""
        return self.rows_left >= (1 + _BACKWARD + words) * sum(len(batch.latents) for batch in self.batches)

    @cached_property
    def _vocabulary(self) -> torch.Tensor:
        """Ids of the words that may be chosen: whole, of plain letters, and known to the checkpoint."""
        known = torch.ones(len(self.tokenizer.vocabulary), dtype=torch.bool, device=self.model.device)
        for encoder, size in zip(self.model.conditioner.encoders.values(), self.model.words):
            norms = torch.linalg.vector_norm(encoder.token_table.float(), dim=1)
            known &= norms[: len(known)] > _LEAST_NORM * size.norm
        ids = [index for index in known.nonzero()[:, 0].tolist() if _is_word(self.tokenizer.vocabulary[index])]
        return torch.tensor(ids, dtype=torch.int64, device=self.model.device)

    @cached_property
    def _all_words(self) -> torch.Tensor:
        """The vectors of the words that may be chosen, fp32 [words, d]."""
        return self.model.conditioner.rows_of(self._vocabulary)

    @cached_property
    def _vocabulary_set(self) -> set[int]:
        return set(self._vocabulary.tolist())

    def _vectors(self, ids: Sequence[int]) -> torch.Tensor:
        """The vectors of words, fp32 [n, d]."""
        return self.model.conditioner.rows_of(torch.tensor(ids, device=self.model.device))

    def _losses(self, ids: Sequence[int]) -> torch.Tensor:
        """The loss of each row with these words, [b]."""
        return self._losses_of(self._vectors(ids))

    @torch.no_grad()
    def _losses_of(self, vectors: torch.Tensor, batches: Sequence[Batch] = ()) -> torch.Tensor:
        """The loss of each row of some batches, or of all, with vectors [n, d], [b]."""
        padded = self._padded(vectors)
        return torch.cat([self._row_errors(batch, padded) for batch in batches or self.batches])

    def _gradient(self, vectors: torch.Tensor) -> torch.Tensor:
        """The gradient of the relative loss, [n, d]."""
        leaf = self._padded(vectors).requires_grad_(True)
        total, begin = torch.zeros_like(leaf), 0
        for batch in self.batches:
            losses = self._row_errors(batch, leaf)
            reference = self.reference[begin : begin + len(losses)]
            scale = _HALF_SCALE if self.model.dtype == torch.float16 else 1.0
            (gradient,) = torch.autograd.grad((losses / reference).sum() * scale, leaf)
            total, begin = total + gradient / scale, begin + len(losses)
            self.rows_left -= _BACKWARD * len(losses)
        return total[self.first_row :] / begin

    def _row_errors(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        self.rows_left -= len(batch.latents)
        return row_errors(self.model, batch, vectors, self.clip_skip)

    def _padded(self, vectors: torch.Tensor) -> torch.Tensor:
        """The vectors behind the rows of other embeddings."""
        return torch.cat([vectors.new_zeros(self.first_row, vectors.shape[1]), vectors]).detach()


def _is_word(token: str) -> bool:
    word = token.removesuffix("</w>")
    return word != token and word.isascii() and word.isalpha() and len(word) >= _SHORTEST and word not in _EMPTY_WORDS
