"""When a run looks for words of the checkpoint's vocabulary, and what that costs. Works without torch, for estimates.

Costs are counted in forward passes of one picture.
"""

from __future__ import annotations

from textual_inversion.settings.training import EVALUATION_ROWS, PASSES_OF_A_STEP, TrainingConfig

GRADIENT = 3  # what a gradient costs: a forward and a backward pass
TRIED_ON_THE_WAY = 10  # words at each place, while vectors learn
LEAST_OF_A_PLACE = GRADIENT + 2  # times the pictures: what a place needs on the way, a gradient and two words
_STEPS = ((25, 6), (50, 3), (75, 2))  # of the searches on the way, at most, and as a part of all steps
_LEAST_STEPS, _LEAST_ROWS = 60, 8
_FIRST_SHARE, _MOST_FIRST = 0.2, 4000  # of the run's cost that looking for words to start from may add, and the most
_TAKEN = 0.45  # share of the pictures that a word takes on average, on the way


def search_steps(config: TrainingConfig, first_step: int | None) -> tuple[int, ...]:
    """The steps at which a run that begins after `first_step` looks for words.

    Later searches are for words that the first one could not see: the vectors have come closer by then.
    A word whose steps are not known (None) was learned elsewhere, and stays as it is.
    """
    wanted = config.vocabulary_search and config.method != "classic"
    if not wanted or config.total_steps < _LEAST_STEPS or first_step is None:
        return ()
    steps = (min(most, config.total_steps // part) for most, part in _STEPS)
    return tuple(step for step in steps if step > first_step)


def search_rows(config: TrainingConfig) -> int:
    """Fixed pictures by which words are compared on the way; fewer in a short run."""
    return max(_LEAST_ROWS, min(EVALUATION_ROWS, _rows(config) // 50))


def search_budget(config: TrainingConfig) -> int:
    """What a search on the way may cost: a sixth of all steps."""
    return _cost_of_steps(config) // 6


def usual_cost(count: int, rows: int, budget: int) -> int:
    """What a search on the way usually costs.

    Args:
        count: vectors.
        rows: that words are compared by.
        budget: what it may cost.
    """
    if budget < (1 + LEAST_OF_A_PLACE) * rows:
        return 0
    return min(budget, int(rows * (1 + GRADIENT + count * TRIED_ON_THE_WAY * _TAKEN)))


def first_search_budget(config: TrainingConfig) -> int:
    """What the search for words to start from may cost."""
    return min(int(_FIRST_SHARE * _cost_of_steps(config)), _MOST_FIRST)


def _cost_of_steps(config: TrainingConfig) -> int:
    return _rows(config) * PASSES_OF_A_STEP


def _rows(config: TrainingConfig) -> int:
    """Pictures in all steps together."""
    return config.total_steps * config.batch_size * config.gradient_accumulation_steps
