"""The loss curve of a run as a page draws it: a few hundred points, whatever the length of the run."""

from __future__ import annotations

import math

from textual_inversion.training.events import StepDone

MAX_POINTS = 400


class LossCurve:
    """At most `MAX_POINTS` points `[step, loss, smoothed loss, learning rate, vector norm]`, whatever the length of the run.

    A full curve is halved by joining neighbours: the losses are averaged, the other columns come from the later point. The smoothed
    loss is the bias-corrected exponential mean over every step, so thinning does not change it; its window is a twelfth of
    the run, 8 to 100 steps.

    Args:
        steps: length of the run.
    """

    def __init__(self, steps: int = 0) -> None:
        self._past = 1 - 2 / (min(100, max(8, steps / 12)) + 1)  # weight of the past in the running mean
        self._points: list[list[float]] = []
        self._counts: list[int] = []
        self._stride = 1
        self._mean = 0.0
        self._weight = 0.0

    def add(self, event: StepDone) -> float:
        """Add one step and return the smoothed loss."""
        if math.isfinite(event.loss):
            self._mean = self._past * self._mean + (1 - self._past) * event.loss
            self._weight = self._past * self._weight + (1 - self._past)
        smooth = self._mean / self._weight if self._weight else event.loss
        point = [event.step, event.loss, smooth, event.learning_rate, event.vector_norm]
        if self._counts and self._counts[-1] < self._stride:
            self._join(point)
        else:
            self._points.append(point)
            self._counts.append(1)
        if len(self._points) > MAX_POINTS:
            self._halve()
        return smooth

    def _join(self, point: list[float]) -> None:
        count = self._counts[-1]
        mean = (self._points[-1][1] * count + point[1]) / (count + 1)
        self._points[-1] = [point[0], mean, *point[2:]]
        self._counts[-1] = count + 1

    def _halve(self) -> None:
        points, counts = self._points, self._counts
        self._points, self._counts = [], []
        self._stride *= 2
        for point, count in zip(points, counts, strict=True):
            if self._counts and self._counts[-1] + count <= self._stride:
                earlier = self._counts[-1]
                mean = (self._points[-1][1] * earlier + point[1] * count) / (earlier + count)
                self._points[-1] = [point[0], mean, *point[2:]]
                self._counts[-1] = earlier + count
            else:
                self._points.append(point)
                self._counts.append(count)

    def points(self) -> list[list[float | None]]:
        """The points, oldest first, rounded for a page; None replaces values that are not finite."""
        return [[int(point[0]), *(short_number(value) for value in point[1:])] for point in self._points]


def short_number(value: float) -> float | None:
    """`value` with five significant digits; None for NaN and infinity, which JSON lacks."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
