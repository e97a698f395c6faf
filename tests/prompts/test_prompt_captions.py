"""Shuffled and dropped caption tags."""

from __future__ import annotations

import random

import pytest

from textual_inversion.errors import ConfigError
from textual_inversion.prompts.templates import drop_tags, shuffle_tags, split_tags

CAPTION = "red hat,  snow , ,blue sky, old (worn) boots"
TAGS = ["red hat", "snow", "blue sky", "old (worn) boots"]


def test_shuffles_all_tags_the_same_way_for_the_same_seed() -> None:
    once = shuffle_tags(CAPTION, random.Random(3))
    assert once == shuffle_tags(CAPTION, random.Random(3))
    assert sorted(once.split(", ")) == sorted(TAGS)
    assert len({shuffle_tags(CAPTION, random.Random(seed)) for seed in range(60)}) > 15


def test_drops_none_or_all_at_the_ends() -> None:
    assert drop_tags(CAPTION, 0.0, random.Random(0)) == ", ".join(TAGS)
    assert drop_tags(CAPTION, 1.0, random.Random(0)) == ""
    assert drop_tags("", 0.5, random.Random(0)) == shuffle_tags(" , ", random.Random(0)) == ""


def test_drops_as_often_as_asked_and_keeps_the_order() -> None:
    rng = random.Random(1)
    kept = [split_tags(drop_tags("a, b, c, d", 0.25, rng)) for _ in range(2000)]
    assert all(tags == sorted(tags) for tags in kept)
    assert sum(len(tags) for tags in kept) / 8000 == pytest.approx(0.75, abs=0.03)


def test_later_draws_do_not_depend_on_the_probability() -> None:
    first, second = random.Random(5), random.Random(5)
    drop_tags(CAPTION, 0.0, first)
    drop_tags(CAPTION, 0.9, second)
    assert first.random() == second.random()


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_chance_outside_its_range_is_an_error(probability: float) -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        drop_tags(CAPTION, probability, random.Random(0))


def test_the_first_tags_stay_where_they_are() -> None:
    orders = {shuffle_tags(CAPTION, random.Random(seed), keep=2) for seed in range(20)}
    assert len(orders) == 2
    assert all(order.startswith("red hat, snow, ") for order in orders)
    assert drop_tags(CAPTION, 1.0, random.Random(0), keep=2) == "red hat, snow"
    assert drop_tags(CAPTION, 1.0, random.Random(0), keep=9) == shuffle_tags(CAPTION, random.Random(0), keep=9) == ", ".join(TAGS)
