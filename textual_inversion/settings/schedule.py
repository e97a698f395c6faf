"""Learning rates over a run: A1111's syntax `0.005:100, 1e-3:1000, 1e-5`, and a rate that falls along a cosine."""

from __future__ import annotations

import math
import re
import unicodedata

from textual_inversion.errors import ConfigError


class LearningRateSchedule:
    """A value that depends on the step, written `rate:until step, rate:until step, rate`.

    The last part needs no step and holds to the end; `:-1` says the same. A step limit is inclusive: `0.005:100` is used
    for steps 1 to 100. Rates may be written as in other countries and places: `0,005`, `5×10⁻³`, `5e−3`.

    Args:
        text: the schedule; rates are positive and finite, limits are whole and rising.
        what: the name of the setting in words, for messages.

    Raises:
        ConfigError: text that does not parse, naming the part; with the setting's name.
    """

    def __init__(self, text: str | float, what: str = "learning rate") -> None:
        self.text = plain_rates(str(text))
        self._what, self._setting = what, what.replace(" ", "_")
        self.parts: list[tuple[float, float]] = []  # (rate, last step it holds for)
        pieces = [piece.strip() for piece in self.text.split(",") if piece.strip()]
        if not pieces:
            reason = f"The {what} is empty; give a number such as 0.005 or a schedule such as '0.005:100, 1e-3'."
            raise ConfigError(reason, setting=self._setting)
        for piece in pieces:
            self.parts.append(self._parse(piece))

    def _parse(self, piece: str) -> tuple[float, float]:
        rate_text, _, limit_text = piece.partition(":")
        try:
            rate = float(rate_text)
            limit = math.inf if not limit_text.strip() or int(limit_text) == -1 else int(limit_text)
        except ValueError:
            expected = "auto, RATE or RATE:STEP" if self._what == "learning rate" else "RATE or RATE:STEP"
            raise self._error(piece, f"expected {expected}") from None
        if not math.isfinite(rate) or rate <= 0:
            raise self._error(piece, "the rate must be above 0")
        if self.parts and self.parts[-1][1] == math.inf:
            raise self._error(piece, "it follows a part that already holds to the end")
        if limit <= (self.parts[-1][1] if self.parts else 0):
            raise self._error(piece, "its step must be above the one before")
        return rate, limit

    def _error(self, piece: str, reason: str) -> ConfigError:
        where = "" if piece == self.text else f" in {self.text!r}"
        message = f"The {self._what} {piece!r}{where} cannot be used: {reason}, as in '0.005:100, 1e-3:1000, 1e-5'."
        return ConfigError(message, setting=self._setting)

    def at(self, step: int) -> float:
        """The value for optimizer step `step` (the first step is 1); past the last limit the last rate holds."""
        for rate, limit in self.parts:
            if step <= limit:
                return rate
        return self.parts[-1][0]


_POWER = re.compile(r"\s*[×x*·]\s*10\s*\^?\s*([+-]?\d+)")
_DECIMAL_COMMA = re.compile(r"(?<![\d.:eE+-])(\d+),(\d+)")


def plain_rates(text: str) -> str:
    """A schedule with its numbers as programs write them: `5×10⁻³` becomes `5e-3`, and a comma between digits becomes a point.

    The comma of `0.005:100,1e-3` separates parts, as one behind a step or a number with a point does.
    """
    plain = unicodedata.normalize("NFKC", text.strip()).replace("\N{MINUS SIGN}", "-").replace("\N{ARABIC DECIMAL SEPARATOR}", ".")
    plain = re.sub(r"\s*:\s*", ":", plain)  # else the comma behind a step would be taken for one inside a number
    return _DECIMAL_COMMA.sub(r"\1.\2", _POWER.sub(r"e\1", plain.replace("，", ",").replace("、", ",")))


class CosineSchedule:
    """A rate that falls along half a cosine (arXiv 1608.03983, eq. 5) from its peak to a tenth of it, with a short warm-up before.

    The cosine spans all steps of the embedding: a run that was interrupted goes on where it stood, after a warm-up of its own.

    Args:
        peak: the highest rate.
        first_step: steps done before the run.
        last_step: the step at which the run ends.
    """

    FLOOR = 0.1  # of the peak, at the end
    MOST_WARM_UP = 10  # steps

    def __init__(self, peak: float, first_step: int, last_step: int) -> None:
        self.peak, self.first_step, self.last_step = peak, first_step, last_step
        self.warm_up = min(self.MOST_WARM_UP, (last_step - first_step) // 10)

    def at(self, step: int) -> float:
        """The rate of optimizer step `step`; the first step of the run is `first_step` + 1."""
        rise = min(1.0, (step - self.first_step) / (self.warm_up + 1))
        share = min(1.0, (step - 1) / max(1, self.last_step - 1))
        return self.peak * rise * (self.FLOOR + (1 - self.FLOOR) * (1 + math.cos(math.pi * share)) / 2)


class CoolDown:
    """A rate that falls along half a cosine from `start` at step `begin` to `end` at step `last_step`."""

    def __init__(self, start: float, end: float, begin: int, last_step: int) -> None:
        self.start, self.end, self.begin, self.steps = start, min(start, end), begin, max(1, last_step - begin)

    def at(self, step: int) -> float:
        """The rate of optimizer step `step`, above `begin`."""
        share = min(1.0, (step - self.begin) / self.steps)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * share)) / 2


Schedule = LearningRateSchedule | CosineSchedule | CoolDown
