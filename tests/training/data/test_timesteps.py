"""The timesteps of all methods but the classic one: spread evenly, high noise favoured where asked for."""

from __future__ import annotations

import random

import pytest

from textual_inversion.training.data.timesteps import StratifiedTimesteps


@pytest.mark.parametrize("favours_noise", [False, True])
@pytest.mark.parametrize(("rows", "strata"), [(1, 8), (3, 9), (4, 8), (8, 8), (12, 12)])
def test_every_stratum_is_visited_before_any_twice(rows: int, strata: int, favours_noise: bool) -> None:
    timesteps = StratifiedTimesteps(rows, random.Random(3), favours_noise=favours_noise)
    assert timesteps.count == strata
    for _ in range(20):
        drawn = [time for _ in range(strata // rows) for time in timesteps.next(rows)]
        shares = sorted((time / 1000) ** (2 if favours_noise else 1) for time in drawn)
        assert all(number / strata - 0.003 <= share < (number + 1) / strata for number, share in enumerate(shares))


@pytest.mark.parametrize(("favours_noise", "share"), [(False, 0.5), (True, 0.25)])
def test_high_noise_is_favoured_as_a_root_where_asked_for(favours_noise: bool, share: float) -> None:
    timesteps = StratifiedTimesteps(4, random.Random(0), favours_noise=favours_noise)
    drawn = [time for _ in range(2000) for time in timesteps.next(4)]
    assert (min(drawn) >= 0, max(drawn) <= 999) == (True, True)
    assert sum(time < 500 for time in drawn) / len(drawn) == pytest.approx(share, abs=0.01)


def test_a_seed_gives_its_timesteps() -> None:
    first, same, other = (StratifiedTimesteps(2, random.Random(seed)).next(50) for seed in (1, 1, 2))
    assert first == same
    assert first != other
