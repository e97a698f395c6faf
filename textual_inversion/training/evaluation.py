"""Measures what was learned on batches that stay the same, and tells when a run has learned all it can.

The loss of single steps says little: it depends far more on the noise of each step than on the vectors. On fixed pictures, prompts,
noise and timesteps it depends on the vectors alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import torch

from textual_inversion.diffusion.graphs import GraphCache
from textual_inversion.training.data.batches import Batch
from textual_inversion.training.step import LEAST_LOSS, TrainingStep, row_errors

_CLEARLY = 0.02  # share of a loss above which a difference counts
_LEAST_STEPS, _LEAST_POINTS = 60, 2  # before a curve is called flat; points of its last third
_LEAST_FALL = 0.05  # of the logarithm of the loss: less than a word that has begun to be learned
_FLAT = 0.1  # the last third's share of the fall before it
_COOL_DOWN = 0.2  # of the steps so far


def cool_down_steps(done: int) -> int:
    """Steps over which the rate falls to its lowest once nothing more is learned."""
    return max(10, int(_COOL_DOWN * done))


class Evaluation:
    """The loss of one embedding on fixed batches.

    Args:
        step: the model and all vectors.
        number: of the embedding.
        batches: its fixed batches.
        graphs: records the passes.
    """

    def __init__(self, step: TrainingStep, number: int, batches: Sequence[Batch], graphs: GraphCache) -> None:
        self.step, self.number, self.batches, self.graphs = step, number, batches, graphs
        self._slots: dict[Hashable, _Slot] = {}

    def measure(self) -> float:
        """The geometric mean of the rows' losses, in which every row counts by the share that goes away. Waits for the device."""
        losses = []
        for batch in self.batches:
            key = _form(batch)
            if key not in self._slots:
                self._slots[key] = _Slot(deepcopy(batch), torch.zeros(len(batch.latents), device=batch.latents.device))
            slot = self._slots[key]
            _fill(slot.batch, batch)
            self.graphs.run(("evaluation", self.number, key), partial(self._pass, slot))
            losses.append(slot.losses.clone())
        return math.exp(float(torch.cat(losses).clamp(min=LEAST_LOSS).log().mean()))

    @torch.no_grad()
    def _pass(self, slot: _Slot) -> None:
        slot.losses.copy_(row_errors(self.step.model, slot.batch, self.step.vectors, self.step.clip_skip))


@dataclass(frozen=True)
class _Slot:
    """Tensors of a pass that stay where they are, as a CUDA graph needs them."""

    batch: Batch
    losses: torch.Tensor


def _parts(batch: Batch) -> list[torch.Tensor]:
    prompts = batch.prompts
    parts = [batch.latents, batch.noise, batch.timesteps, prompts.tokens.ids, prompts.tokens.index, prompts.tokens.mask]
    return [*parts, *(part for part in (batch.weights, batch.sizes, prompts.weights) if part is not None)]


def _form(batch: Batch) -> Hashable:
    """With the same form, a pass has the same kernels."""
    optional = (batch.weights, batch.sizes, batch.prompts.weights)
    present = (*(part is not None for part in optional), batch.prompts.chunks)
    return (*present, *(tuple(part.shape) for part in _parts(batch)))


def _fill(slot: Batch, batch: Batch) -> None:
    for old, new in zip(_parts(slot), _parts(batch), strict=True):
        old.copy_(new)


@dataclass
class Curve:
    """The evaluations of a run, and the rule that ends it.

    Attributes:
        points: (step, loss) in the order of the steps.
    """

    points: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float]:
        """(step, loss) of the lowest loss; with no finite loss the first one."""
        return min((point for point in self.points if math.isfinite(point[1])), key=lambda point: point[1], default=self.points[0])

    @property
    def is_flat(self) -> bool:
        """Whether the last third of the steps has brought next to nothing beside the steps before.

        A plateau at the beginning, before the vectors have found what the pictures show, does not count.
        """
        if not self.points:
            return False
        first, last = self.points[0][0], self.points[-1][0]
        border = last - (last - first) / 3
        before = [loss for step, loss in self.points if step <= border]
        after = [loss for step, loss in self.points if step > border]
        if last - first < _LEAST_STEPS or len(after) < _LEAST_POINTS or not all(map(math.isfinite, before + after)):
            return False
        fall, recent = math.log(self.points[0][1] / min(before)), math.log(min(before) / min(after))
        return fall > _LEAST_FALL and recent < _FLAT * fall

    @property
    def has_risen(self) -> bool:
        """Whether the last loss is clearly above the lowest."""
        lowest = self.best[1]
        return math.isfinite(lowest) and not self.points[-1][1] <= lowest * (1 + _CLEARLY)  # NaN is worse, too

    def add(self, step: int, loss: float) -> bool:
        """Add an evaluation; returns whether it is the best so far."""
        is_best = math.isfinite(loss) and (not self.points or not loss >= self.best[1])
        self.points.append((step, loss))
        return is_best
