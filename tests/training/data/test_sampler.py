from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textual_inversion.errors import ConfigError, DatasetError
from textual_inversion.training.data.batches import BucketOrder, DataOrder


def order(n_pictures: int, batch_size: int, seed: int = 0) -> DataOrder:
    return DataOrder(n_pictures, batch_size, torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 30))
def test_every_picture_appears_equally_often(n_pictures: int, batch_size: int, batches: int) -> None:
    data_order = order(n_pictures, batch_size)
    drawn = [index for _ in range(batches) for index in data_order.next_batch()]
    assert len(drawn) == batches * batch_size
    counts = Counter(drawn)
    times = [counts[index] for index in range(n_pictures)]
    assert max(times) - min(times) <= 1
    assert set(counts) <= set(range(n_pictures))


def test_epochs_differ_and_seeds_repeat() -> None:
    data_order = order(10, 10)
    first, second = data_order.next_batch(), data_order.next_batch()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    again = order(10, 10)
    assert [again.next_batch(), again.next_batch()] == [first, second]
    assert order(10, 10, seed=1).next_batch() != first


def test_nothing_to_order() -> None:
    with pytest.raises(DatasetError):
        order(0, 1)
    with pytest.raises(ConfigError) as error:
        order(1, 0)
    assert error.value.setting == "batch_size"


COUNTS = st.lists(st.integers(1, 7), min_size=2, max_size=5)


def buckets(counts: list[int], batch_size: int, seed: int = 0) -> BucketOrder:
    return BucketOrder(counts, batch_size, torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(COUNTS, st.integers(1, 6), st.integers(1, 3))
def test_every_picture_of_every_size_is_seen_equally_often(counts: list[int], batch_size: int, epochs: int) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    order = buckets(counts, batch_size)
    for _ in range(epochs * sum(counts)):
        size, indices = order.next_batch()
        assert len(indices) == batch_size
        assert all(0 <= index < counts[size] for index in indices)
        seen.update((size, index) for index in indices)
    times = [seen[size, index] for size, count in enumerate(counts) for index in range(count)]
    assert times == [epochs * batch_size] * sum(counts)


def test_sizes_come_mixed_and_seeds_repeat() -> None:
    drawn = [buckets([6, 6, 6], 2).next_batch() for _ in range(2)]
    assert drawn[0] == drawn[1]
    order = buckets([6, 6, 6], 2)
    sizes = [order.next_batch()[0] for _ in range(18)]
    assert sizes != sorted(sizes)
    assert buckets([6, 6, 6], 2, seed=1).next_batch() != drawn[0] or buckets([6, 6, 6], 2, seed=2).next_batch() != drawn[0]


def test_one_size_is_the_plain_order() -> None:
    plain, sized = order(9, 4, seed=3), buckets([9], 4, seed=3)
    assert [sized.next_batch() for _ in range(9)] == [(0, plain.next_batch()) for _ in range(9)]
