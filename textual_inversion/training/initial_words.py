"""Finds words of the checkpoint's own vocabulary that describe the pictures, for an embedding to start from.

A gradient picks the words that are tried (AutoPrompt, arXiv 2010.15980).
"""

from __future__ import annotations

from textual_inversion.training.search_plan import GRADIENT
from textual_inversion.training.word_fit import WordFit

_FIRST_WORDS = ("shape", "object", "person", "man", "woman", "animal", "dog", "cat", "car", "building", "landscape", "food", "toy", "style")
_TRIED = 4  # words at each place


def find_initial_words(fit: WordFit) -> list[int]:
    """The ids of the words that were found, one for each vector; none where the checkpoint knows no word to begin with.

    All places begin with the one noun that fits best. Then one place after another gets the best word, until no place gets a better one or
    the budget is used up. A place is begun only where it can be finished; the nouns to begin with are compared in any case.
    """
    ids = _first_words(fit)
    best, unchanged, place = 1.0, 0, 0
    while ids and unchanged < fit.count and fit.budget.allows((GRADIENT + _TRIED) * fit.rows):
        found, loss = _improve(fit, ids, place, best)
        unchanged = unchanged + 1 if found == ids else 0
        ids, best, place = found, loss, (place + 1) % fit.count
    return ids


def _first_words(fit: WordFit) -> list[int]:
    """One noun for all places: the one that fits best."""
    tokens = [ids[0] for word in _FIRST_WORDS if len(ids := fit.tokenizer.encode(word)) == 1]
    known = set(fit.vocabulary.tolist())
    losses = {index: fit.losses(fit.vectors_of([index] * fit.count)) for index in tokens if index in known}
    if not losses:
        return []
    # the logarithm gives each row the same say, whatever its noise
    best = min(losses, key=lambda index: float(losses[index].log().mean()))
    fit.reference = losses[best]
    return [best] * fit.count


def _improve(fit: WordFit, ids: list[int], place: int, best: float) -> tuple[list[int], float]:
    """The words with the best one at a place, and their loss."""
    vectors = fit.vectors_of(ids)
    promised = (fit.words - vectors[place]) @ fit.gradient(vectors)[place]  # change of the loss, to first order
    chosen = ids
    promising = fit.vocabulary[promised.argsort()[: _TRIED + 1]].tolist()
    for index in [index for index in promising if index != ids[place]][:_TRIED]:
        if fit.budget.should_stop():
            break
        tried = [*ids[:place], index, *ids[place + 1 :]]
        loss = float((fit.losses(fit.vectors_of(tried)) / fit.reference).mean())
        if loss < best:
            chosen, best = tried, loss
    return chosen, best
