"""Which pictures come next: shuffled epoch by epoch, resumable. Knows nothing of pictures but their number and which are of one size."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from textual_inversion.errors import ConfigError, DatasetError


class DataOrder:
    """Picture indices in batches; each epoch shows every picture once, in a new order, and a batch may span two epochs.

    Args:
        n_pictures: number of pictures, 1 or more.
        batch_size: indices in one batch, 1 or more.
        generator: a CPU generator that belongs to this object alone; its state is part of `state_dict`.

    Raises:
        DatasetError: no pictures.
        ConfigError: a batch size below 1.
    """

    def __init__(self, n_pictures: int, batch_size: int, generator: torch.Generator) -> None:
        if n_pictures < 1:
            raise DatasetError("There are no pictures to put in order; at least one is needed.")
        if batch_size < 1:
            raise ConfigError(f"Batch size is {batch_size}; it must be 1 or more.")
        self.n_pictures = n_pictures
        self.batch_size = batch_size
        self._generator = generator
        self._order: list[int] = []
        self._position = 0

    def next_batch(self) -> list[int]:
        """The next `batch_size` indices, each from 0 to `n_pictures` - 1."""
        return [self._next() for _ in range(self.batch_size)]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that decides the indices to come, as CPU tensors: `order` int64, `position` int64 [], `generator` uint8."""
        return {
            "order": torch.tensor(self._order, dtype=torch.int64),
            "position": torch.tensor(self._position, dtype=torch.int64),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on exactly where `state_dict` was taken; the batch size may differ.

        Raises:
            DatasetError: the state belongs to another number of pictures, or is damaged. Nothing is changed then.
        """
        order = [int(index) for index in state["order"]]
        position = int(state["position"])
        if len(order) not in (0, self.n_pictures):
            raise DatasetError(
                f"The saved data order is for {len(order)} pictures and the folder now has {self.n_pictures}; "
                "restore the folder or start afresh."
            )
        if sorted(order) != list(range(len(order))) or not 0 <= position <= len(order):
            raise DatasetError("The saved data order is damaged (it does not name every picture once); start afresh.")
        self._generator.set_state(state["generator"].cpu())
        self._order, self._position = order, position

    def _next(self) -> int:
        if self._position == len(self._order):
            self._order = torch.randperm(self.n_pictures, generator=self._generator).tolist()
            self._position = 0
        self._position += 1
        return self._order[self._position - 1]


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

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that decides the batches to come: those of `DataOrder` for `leaders.` and for each size `0.`, `1.`, ..."""
        return {f"{name}.{key}": value for name, order in self._parts() for key, value in order.state_dict().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on exactly where `state_dict` was taken; the batch size may differ.

        Raises:
            DatasetError: the state belongs to other pictures or sizes, or is damaged.
        """
        expected = {f"{name}.{key}" for name, _ in self._parts() for key in ("order", "position", "generator")}
        if set(state) != expected:
            raise DatasetError("The saved data order is for pictures of other sizes; restore folder and settings, or start afresh.")
        for name, order in self._parts():
            order.load_state_dict({key: state[f"{name}.{key}"] for key in ("order", "position", "generator")})

    def _parts(self) -> list[tuple[str, DataOrder]]:
        leaders = [] if self._leaders is None else [("leaders", self._leaders)]
        return [*leaders, *((str(number), order) for number, order in enumerate(self._orders))]
