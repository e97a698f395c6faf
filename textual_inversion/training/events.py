"""The events of a training run, as plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Started:
    """Training begins. `first_step` is the embedding's step before the run, `last_step` the one to reach."""

    name: str
    first_step: int
    last_step: int
    images: int
    skipped: tuple[tuple[str, str], ...] = ()  # (file, reason) of pictures left out


@dataclass(frozen=True)
class Message:
    """One sentence for the user, such as "Loading sd15". A page keeps an `important` one in view."""

    text: str
    important: bool = False


@dataclass(frozen=True)
class Busy:
    """Something other than a step takes time now, such as "Drawing the preview of step 50". The next event ends it."""

    text: str


@dataclass(frozen=True)
class StepDone:
    """One optimizer step is done. `loss` is that step's mean squared error, `vector_norm` the mean row norm of the vectors."""

    step: int
    loss: float
    learning_rate: float
    vector_norm: float
    steps_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Evaluated:
    """The vectors were measured on batches that stay the same. `loss` is the geometric mean of the rows' mean squared errors,
    `best_step` the step at which it was lowest so far.
    """

    step: int
    loss: float
    best_step: int


@dataclass(frozen=True)
class Judged:
    """What the run has measured was judged, see `training.verdict`.

    Attributes:
        level: `good`, `fair` or `bad`.
        text: one sentence.
        words: text encoder -> the nearest word of each vector; "" for a vector without a direction.
        norms: text encoder -> the norm of each vector; None where that is not finite.
        range: text encoder -> (low, median, high): the norms of the middle 90 % of the checkpoint's words.
    """

    step: int
    level: str
    text: str
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    norms: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict, hash=False)
    range: Mapping[str, tuple[float, float, float]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class PreviewDrawn:
    """A preview picture was written to `path`; `row` counts the prompts of the previews from 0."""

    step: int
    path: str
    prompt: str
    seed: int
    row: int = 0


@dataclass(frozen=True)
class CopySaved:
    """A numbered copy of the embedding was written to `path`."""

    step: int
    path: str


@dataclass(frozen=True)
class Stopped:
    """Training is over. `reason` is `finished`, `interrupted`, or one sentence that says what went wrong.

    `path` is the embedding file with the last good vectors, at `step`.
    """

    step: int
    reason: str
    path: str
    failed: bool = False


Event = Started | Message | Busy | StepDone | Evaluated | Judged | PreviewDrawn | CopySaved | Stopped
