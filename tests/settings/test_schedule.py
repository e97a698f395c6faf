"""The learning-rate syntax against A1111's rule, derived again from its behaviour, and what does not parse."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.errors import ConfigError
from textual_inversion.settings.schedule import CoolDown, CosineSchedule, LearningRateSchedule

RATES = st.floats(1e-9, 10, allow_subnormal=False)


def by_a1111(pairs: list[tuple[float, int]], last: int) -> list[float]:
    """Rates of steps 1 to `last`: before each step the schedule moves on once the steps done have reached its limit; -1 is no limit."""
    waiting, used = [(rate, math.inf if limit == -1 else limit) for rate, limit in pairs], []
    current = waiting.pop(0)
    for done in range(last):
        if done >= current[1] and waiting:
            current = waiting.pop(0)
        used.append(current[0])
    return used


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[float, int]]:
    """One to five parts with rising limits; the last may have none."""
    limits = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=5)))
    if draw(st.booleans()):
        limits[-1] = -1
    return [(draw(RATES), limit) for limit in limits]


@given(schedules(), st.sampled_from([",", ", ", " ,  "]), st.booleans())
def test_rates_are_those_of_a1111(pairs: list[tuple[float, int]], comma: str, bare_end: bool) -> None:
    text = comma.join(f"{rate!r}" if limit == -1 and bare_end else f"{rate!r}:{limit}" for rate, limit in pairs)
    schedule = LearningRateSchedule(text)
    assert [schedule.at(step) for step in range(1, 71)] == by_a1111(pairs, 70)


@given(RATES)
def test_a_number_alone_holds_to_the_end(rate: float) -> None:
    for schedule in (LearningRateSchedule(rate), LearningRateSchedule(f" {rate!r} "), LearningRateSchedule(f"{rate!r}:-1")):
        assert schedule.at(1) == schedule.at(10**9) == rate


def test_limits_are_inclusive() -> None:
    schedule = LearningRateSchedule("0.005:100, 1e-3:1000, 1e-5")
    assert [schedule.at(step) for step in (1, 100, 101, 1000, 1001, 10**6)] == [0.005, 0.005, 1e-3, 1e-3, 1e-5, 1e-5]


def test_past_the_last_limit_its_rate_holds() -> None:
    schedule = LearningRateSchedule("0.005:10, 0.001:20")
    assert schedule.at(21) == 0.001


@pytest.mark.parametrize(("text", "named"), [
    ("", "empty"), (" , ", "empty"), ("fast", "'fast'"), ("0.005:ten", "'0.005:ten'"), ("0.005:1.5", "'0.005:1.5'"), ("0", "above 0"),
    ("-0.1", "above 0"), ("nan", "above 0"), ("inf", "above 0"), ("0.1:0", "above the one before"), ("0.1:-2", "above the one before"),
    ("0.1:10, 0.2:10", "'0.2:10'"), ("0.1:10, 0.2:5", "'0.2:5'"), ("0.1, 0.2", "holds to the end"), ("0.1:-1, 0.2", "holds to the end"),
    ("0.1:2:3", "'0.1:2:3'"), ("0.1;5", "'0.1;5'"),
])  # fmt: skip
def test_what_does_not_parse_is_named(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        LearningRateSchedule(text)
    assert caught.value.reason.endswith(".")
    assert caught.value.setting == "learning_rate"


@given(st.text(alphabet="0123456789.,:-+eE naif_", max_size=30))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        schedule = LearningRateSchedule(text)
    except ConfigError:
        return
    assert all(0 < schedule.at(step) < math.inf for step in (1, 2, 100, 10**7))


@given(st.integers(0, 5000), st.integers(1, 5000))
def test_a_cosine_warms_up_and_falls_to_a_tenth(first_step: int, steps: int) -> None:
    schedule = CosineSchedule(0.05, first_step, first_step + steps)
    rates = [schedule.at(first_step + number) for number in range(1, steps + 1)]
    assert all(0 < rate <= 0.05 for rate in rates)
    assert rates[schedule.warm_up :] == sorted(rates[schedule.warm_up :], reverse=True)
    assert rates[: schedule.warm_up] == sorted(rates[: schedule.warm_up])
    if steps > 1:
        assert rates[-1] == pytest.approx(0.005)


def test_an_interrupted_cosine_goes_on_where_it_stood() -> None:
    whole, rest = CosineSchedule(0.05, 0, 400), CosineSchedule(0.05, 150, 400)
    assert rest.at(151) < whole.at(151) / 5  # a short warm-up, because the optimizer begins anew
    assert [rest.at(step) for step in range(161, 401)] == [whole.at(step) for step in range(161, 401)]


@given(st.integers(0, 5000), st.integers(1, 500))
def test_a_cool_down_falls_from_where_it_begins(begin: int, steps: int) -> None:
    schedule = CoolDown(0.04, 0.005, begin, begin + steps)
    rates = [schedule.at(begin + number) for number in range(1, steps + 1)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 0.04
    assert rates[-1] == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("written", "rates"),
    [
        ("0,005", [(0.005, math.inf)]),
        ("0,005:100, 0,001", [(0.005, 100), (0.001, math.inf)]),
        ("0.005:100,1e-3", [(0.005, 100), (1e-3, math.inf)]),
        ("1,5e-3", [(0.0015, math.inf)]),
        ("5×10⁻³", [(0.005, math.inf)]),
        ("5*10^-3:10, 1e−4", [(0.005, 10), (1e-4, math.inf)]),
        ("０．００５", [(0.005, math.inf)]),
        ("٠٫٠٠٥", [(0.005, math.inf)]),
        ("0.005:100，0.001", [(0.005, 100), (0.001, math.inf)]),
    ],
)
def test_rates_as_people_write_them(written: str, rates: list[tuple[float, float]]) -> None:
    parts = LearningRateSchedule(written).parts
    assert [limit for _, limit in parts] == [limit for _, limit in rates]
    assert [rate for rate, _ in parts] == pytest.approx([rate for rate, _ in rates])
