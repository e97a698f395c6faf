"""The timesteps of all methods but the classic one, chosen by the processor."""

from __future__ import annotations

import random

from textual_inversion.diffusion.noise import TRAIN_TIMESTEPS

_LEAST_STRATA = 8  # fewer rows than these take several steps to visit all


class StratifiedTimesteps:
    """Timesteps that cover the whole range evenly: each falls into a stratum of its own, until all strata were visited.

    Args:
        rows: timesteps in one optimizer step.
        rng: the random numbers of this object alone.
        favours_noise: a timestep is 1000 times the root of a uniform number, not the number itself. For a loss to which rows with much
            noise give little: the content of a picture is decided there.
    """

    def __init__(self, rows: int, rng: random.Random, *, favours_noise: bool = False) -> None:
        self.count = -(-_LEAST_STRATA // rows) * rows
        self._rng, self._power = rng, 0.5 if favours_noise else 1.0
        self._strata: list[int] = []

    def next(self, count: int) -> list[int]:
        """The next timesteps, 0 to 999."""
        return [self._draw() for _ in range(count)]

    def _draw(self) -> int:
        if not self._strata:
            self._strata = self._rng.sample(range(self.count), self.count)
        share = (self._strata.pop() + self._rng.random()) / self.count
        return min(TRAIN_TIMESTEPS - 1, int(share**self._power * TRAIN_TIMESTEPS))
