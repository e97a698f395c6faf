"""Judges a run by what it has measured: one sentence and a level. It computes nothing but this and knows no model.

The evaluation says whether the vectors fit the pictures better; the norms say whether a prompt still hears its other words. Neither
depends on the noise of single steps, as the loss does. The thresholds come from runs on the drawn world, see docs/training.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import takewhile

from textual_inversion.vocabulary import BROKEN, LONG, Lengths, times_longer

#: Fall of the logarithm of the evaluation below which the tiny checkpoint has found nothing that the pictures share. Other checkpoints
#: have no such number, because most of their error is noise that no word explains.
LEAST_FALL_OF_TINY = 0.25
_WORSE = 0.02  # rise of the logarithm of the loss that counts
_STILL = 0.1  # share of the whole fall that the last third must bring, for a run that still improves
_LEAST_STEPS, _LEAST_POINTS = 60, 3  # before a curve can be called level
_LEAST_MOVE = 0.15  # of the length of the vectors; less than this is next to nothing learned


class Level(str, Enum):
    """How good the news is. The values appear in files and JSON."""

    GOOD = "good"
    FAIR = "fair"  # amber
    BAD = "bad"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Verdict:
    """One sentence about a run and how good the news is."""

    level: Level
    text: str


@dataclass(frozen=True)
class Measured:
    """What a run has measured until now.

    Attributes:
        first_step, step, last_step: before the run, now, and to reach.
        points: (step, loss) of the evaluations, the one before the first step included; empty without evaluations.
        norms: text encoder -> the norm of each vector; None where that is not finite.
        lengths: text encoder -> the norms of the checkpoint's words.
        moved: distance from where the vectors started, as a share of their length at the start.
        pictures: how many the run shows.
        described: whether captions or the template's sentences say what differs between the pictures.
        least_fall: of the logarithm of the evaluation, for a new word; less means that the pictures share next to nothing.
        over: whether the run has ended.
        undone: whether the vectors from before the run took the place of all that it learned, because the evaluation only rose.
    """

    first_step: int
    step: int
    last_step: int
    points: Sequence[tuple[int, float]] = ()
    norms: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    lengths: Mapping[str, Lengths] = field(default_factory=dict)
    moved: float = 1.0
    pictures: int = 0
    described: bool = True
    least_fall: float = 0.0
    over: bool = False
    undone: bool = False


def judge_run(measured: Measured) -> Verdict:
    """The verdict on a run, while it learns and at its end. The first rule that applies gives it."""
    rules = (
        _not_finite,
        _undone,
        _too_long,
        _worse_than_before,
        _rising,
        _hardly_moved,
        _unjudged,
        _still_improving,
        _nothing_shared,
        _one_picture,
    )
    return next(filter(None, (rule(measured) for rule in rules)), None) or _level(measured)


def _not_finite(measured: Measured) -> Verdict | None:
    finite = [norm is not None for norms in measured.norms.values() for norm in norms]
    if all(finite) and all(math.isfinite(loss) for _, loss in measured.points):
        return None
    return Verdict(Level.BAD, "Broken, because its vectors or its errors are no numbers any more; train again at a lower learning rate.")


def _undone(measured: Measured) -> Verdict | None:
    if not measured.undone:
        return None
    advice = "train again at a lower learning rate"
    return Verdict(Level.BAD, f"Training only made it worse, so the vectors from before are kept; {advice}.")


def _too_long(measured: Measured) -> Verdict | None:
    times = times_longer(measured.norms, measured.lengths)
    if times < LONG:
        return None
    long = f"its vectors are {times:,.0f} times as long as words"
    if times >= BROKEN:
        return Verdict(Level.BAD, f"Broken, because {long}; train again at a lower learning rate.")
    return Verdict(Level.FAIR, f"Overtraining, because {long} and may drown the rest of a prompt; use an earlier step.")


def _worse_than_before(measured: Measured) -> Verdict | None:
    """The vectors are worse than those that training started from."""
    if len(measured.points) < 2 or not measured.over or _fall(measured) >= -_WORSE:
        return None
    return Verdict(Level.BAD, "Broken, because the evaluation is worse than before training; train again at a lower learning rate.")


def _rising(measured: Measured) -> Verdict | None:
    """The evaluation was better before, and stays worse."""
    if len(measured.points) < 2:
        return None
    best, loss = min(measured.points, key=lambda point: point[1])
    margin = max(_WORSE, _STILL * _fall(measured, loss))
    after = [math.log(later / loss) for step, later in measured.points if step > best]
    if len(after) < (1 if measured.over else 2) or min(after) <= margin:
        return None
    return Verdict(Level.FAIR, f"Overtraining, because the evaluation was best at step {best} and has risen since; use that step.")


def _hardly_moved(measured: Measured) -> Verdict | None:
    if not measured.over or measured.moved >= _LEAST_MOVE:
        return None
    share = f"{max(1, round(100 * measured.moved))} % of their length"
    if measured.first_step:
        return Verdict(Level.FAIR, f"This run hardly changed the word: its vectors moved by less than {share}.")
    reason = f"its vectors moved by less than {share} from where they started; use more steps or a higher learning rate"
    return Verdict(Level.FAIR, f"Hardly anything was learned, because {reason}.")


def _unjudged(measured: Measured) -> Verdict | None:
    """There is no curve, or it is too short to say more."""
    if len(measured.points) < 2:
        said = "was not measured, because evaluations are off" if measured.over else "is not measured yet"
        return Verdict(Level.FAIR, f"How well it fits the pictures {said}.")
    return None


def _still_improving(measured: Measured) -> Verdict | None:
    done = measured.step - measured.first_step
    short = done < _LEAST_STEPS and measured.first_step < _LEAST_STEPS
    if not (short or len(measured.points) < _LEAST_POINTS or _recent_share(measured) > _STILL):
        return None
    if not measured.over:
        return Verdict(Level.FAIR, f"Still improving: its error on the pictures is {_fallen(measured)} so far.")
    return Verdict(
        Level.FAIR, f"Still improving when it ended: its error on the pictures was {_fallen(measured)}, and more steps would help."
    )


def _nothing_shared(measured: Measured) -> Verdict | None:
    if measured.first_step or _fall(measured) >= measured.least_fall:
        return None
    reason = f"its error on the pictures is only {_fallen(measured)}; the pictures may show too different things"
    return Verdict(Level.FAIR, f"Hardly anything was learned, because {reason}.")


def _one_picture(measured: Measured) -> Verdict | None:
    """Whether something may have been learned that does not belong to the word."""
    if measured.pictures != 1 or measured.described or not measured.over:
        return None
    reason = "it saw one picture without a caption, so that the background and the place may have become a part of the word"
    return Verdict(Level.FAIR, f"Overtraining, because {reason}.")


def _level(measured: Measured) -> Verdict:
    last, share = math.log(measured.points[-1][1]), 0.05 * max(_fall(measured), _WORSE)
    near = takewhile(lambda point: math.log(point[1]) <= last + share, reversed(measured.points))
    since = min(step for step, _ in near)
    return Verdict(Level.GOOD, f"Levelled off since step {since}: its error on the pictures is {_fallen(measured)}.")


def _fall(measured: Measured, loss: float | None = None) -> float:
    """How much the logarithm of the evaluation has fallen from before the first step to `loss`, or to the last one."""
    return math.log(measured.points[0][1] / (measured.points[-1][1] if loss is None else loss))


def _recent_share(measured: Measured) -> float:
    """What as many steps as a third of those done would still bring, at the pace of the last interval, as a share of the whole fall."""
    (before, old), (now, new) = measured.points[-2:]
    ahead = (now - measured.points[0][0]) / 3 / max(1, now - before)
    return math.log(old / new) * ahead / max(_fall(measured), _WORSE)


def _fallen(measured: Measured) -> str:
    percent = round(100 * (1 - math.exp(-_fall(measured))))
    return f"{percent} % lower" if percent > 0 else "no lower"
