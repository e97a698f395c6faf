"""The order in which pictures are shown: shuffled epoch by epoch, in batches of one size."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from textual_inversion.errors import ConfigError, DatasetError


class DataOrder:
    """Picture indices in batches; each epoch shows every picture once, in a new order, and a batch may span two epochs.

    Args:
        n_pictures: number of pictures, 1 or more.
        batch_size: indices in one batch, 1 or more.
        generator: a CPU generator that belongs to this object alone.

    Raises:
        DatasetError: no pictures.
        ConfigError: a batch size below 1.
    """

    def __init__(self, n_pictures: int, batch_size: int, generator: torch.Generator) -> None:
        if n_pictures < 1:
            raise DatasetError("There are no pictures to put in order; at least one is needed.")
        if batch_size < 1:
            raise ConfigError(f"Batch size is {batch_size}; it must be 1 or more.", setting="batch_size")
        self.n_pictures = n_pictures
        self.batch_size = batch_size
        self._generator = generator
        self._order: list[int] = []
        self._position = 0

    def next_batch(self) -> list[int]:
        """The next `batch_size` indices, each from 0 to `n_pictures` - 1."""
        batch = []
        for _ in range(self.batch_size):
            if self._position == len(self._order):
                self._order = torch.randperm(self.n_pictures, generator=self._generator).tolist()
                self._position = 0
            batch.append(self._order[self._position])
            self._position += 1
        return batch


class BucketOrder:
    """Batches of pictures of one size, every picture seen equally often.

    A leader, drawn in shuffled epochs over all pictures, decides whose size comes next; the batch is filled from that size's own
    shuffled epochs, which go on from batch to batch. So no picture is dropped where a size does not divide by the batch: a batch
    may span two epochs of its size and, where that has fewer pictures than a batch, show one twice. After each epoch of leaders
    every picture was shown `batch_size` times, give or take one. With one size only it is a `DataOrder`.

    Args:
        counts: number of pictures of each size, each 1 or more.
        batch_size: pictures in one batch, 1 or more.
        generator: a CPU generator that belongs to this object alone.

    Raises:
        DatasetError: no pictures.
        ConfigError: a batch size below 1.
    """

    def __init__(self, counts: Sequence[int], batch_size: int, generator: torch.Generator) -> None:
        if len(counts) < 2:
            self._leaders = None
            self._orders = [DataOrder(sum(counts), batch_size, generator)]
            return
        seeds = torch.randint(2**62, (len(counts),), generator=generator).tolist()
        self._leaders = DataOrder(sum(counts), 1, generator)
        self._sizes = [size for size, count in enumerate(counts) for _ in range(count)]
        self._orders = [DataOrder(count, batch_size, torch.Generator().manual_seed(seed)) for count, seed in zip(counts, seeds)]

    def next_batch(self) -> tuple[int, list[int]]:
        """(which size, indices among the pictures of that size)."""
        size = 0 if self._leaders is None else self._sizes[self._leaders.next_batch()[0]]
        return size, self._orders[size].next_batch()
