"""Several threads for many pictures, in order and never many at once. Knows nothing of what is done to them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

_MOST_WORKERS = 4  # Pillow works outside Python's lock, what lies between its calls does not
_MOST_PIXELS = 60_000_000  # decoded at the same time


def default_workers() -> int:
    """Threads that this machine has processors for, at most four."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, count))


def in_order(
    work: Callable[[Item], Made], items: Iterable[Item], workers: int, should_stop: Callable[[], bool] | None = None
) -> Generator[Made, None, None]:
    """What `work` makes of each item, in their order, a few ahead; it is done in `workers` threads.

    Args:
        should_stop: asked before each item is begun; those begun are finished.

    Raises:
        Exception: what `work` raised first; what is under way then is finished, the rest is not begun.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="textual-inversion-pictures") as pool:
        try:
            for item in items:
                if should_stop and should_stop():
                    break
                waiting.append(pool.submit(work, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class PixelRoom:
    """Lets pictures be decoded at the same time only as long as they are small together; a large one waits and goes alone."""

    def __init__(self, most: int = _MOST_PIXELS) -> None:
        self._most, self._held = most, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Inside, so many pixels may be held."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= self._most)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()
