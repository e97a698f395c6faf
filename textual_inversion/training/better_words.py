"""Replaces vectors that took a wrong turn by words of the checkpoint's own vocabulary, while they learn.

What a vector has learned so far tells a gradient far more than a noun does: it proposes words that the start could not. So vectors leave
a wrong direction that small steps would not.
Legend: n vectors, d width.
"""

from __future__ import annotations

import math

import torch

from textual_inversion.training.search_plan import LEAST_OF_A_PLACE, TRIED_ON_THE_WAY
from textual_inversion.training.word_fit import WordFit

_MUCH_BETTER = 0.9  # share of the loss that a word must leave to replace what was learned
#: A word is first compared by a third of the batches, and by the others where it leaves a hopeful share of the loss there.
_FIRST_PART, _HOPEFUL = 3, 0.95
#: Times the loss of the best word that was tried at a place; a word that is worse is not tried at other places.
_HARMFUL = 1.2


class BetterWords:
    """Looks for words that fit much better than what was learned.

    Args:
        fit: measures words.
        vectors: fp32 [n, d], changed in place.
    """

    def __init__(self, fit: WordFit, vectors: torch.Tensor) -> None:
        self.fit, self.vectors = fit, vectors
        self._best, self._harmful = 1.0, set[int]()
        self._first = -(-len(fit.batches) // _FIRST_PART)

    def replace(self) -> list[tuple[int, str]]:
        """Replace vectors by words of the same length, one after another, as long as the budget lasts.

        Returns:
            (vector, word) of those that were replaced.
        """
        fit, replaced = self.fit, list[tuple[int, str]]()
        if not fit.budget.allows((1 + LEAST_OF_A_PLACE) * fit.rows):
            return []
        fit.reference = fit.losses(self.vectors)
        slope = None  # of the loss; it stays right until a vector is replaced
        for place in range(fit.count):
            if not fit.budget.allows(LEAST_OF_A_PLACE * fit.rows):
                break
            slope = fit.gradient(self.vectors) if slope is None else slope
            if bool(torch.isfinite(slope[place]).all()) and (word := self._replace(place, slope[place])):
                replaced.append((place, word))
                slope = None
        return replaced

    def _replace(self, place: int, slope: torch.Tensor) -> str:
        """Put the word that leaves the least loss in a place, and return it; "" where no word is much better.

        Args:
            slope: gradient of the loss by the vector at this place, [d].
        """
        words = self.fit.words_as_long_as(self.vectors[place])
        losses: dict[int, float] = {}
        for number in self._most_promising((words - self.vectors[place]) @ slope):
            if not self.fit.budget.allows(self.fit.rows):
                break
            tried = self.vectors.clone()
            tried[place] = words[number]
            losses[number] = self._loss(tried)
        if not losses:
            return ""
        chosen = min(losses, key=lambda number: losses[number])
        self._harmful |= {number for number, loss in losses.items() if loss > _HARMFUL * losses[chosen]}
        if losses[chosen] >= _MUCH_BETTER * self._best:
            return ""
        self.vectors[place], self._best = words[chosen], losses[chosen]
        return self.fit.tokenizer.word(int(self.fit.vocabulary[chosen]))

    def _most_promising(self, promised: torch.Tensor) -> list[int]:
        """The words to try at a place.

        Args:
            promised: change of the loss by each word, to first order, [words].
        """
        order = promised.argsort()[: TRIED_ON_THE_WAY + len(self._harmful)].tolist()
        return [number for number in order if number not in self._harmful][:TRIED_ON_THE_WAY]

    def _loss(self, vectors: torch.Tensor) -> float:
        """The loss of vectors as a share of the first one's: of some rows where those give no hope, which saves the others."""
        fit, first = self.fit, self._first
        losses = fit.losses(vectors, fit.batches[:first])
        if self._share(losses) <= _HOPEFUL * self._best and first < len(fit.batches):
            losses = torch.cat([losses, fit.losses(vectors, fit.batches[first:])])
        return self._share(losses)

    def _share(self, losses: torch.Tensor) -> float:
        share = float((losses / self.fit.reference[: len(losses)]).log().mean().exp())
        return share if math.isfinite(share) else math.inf
