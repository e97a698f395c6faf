"""Works on many pictures in a few threads: results in order, a few read ahead, never too many pixels in memory at once."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_WORKERS = 4  # Pillow decodes outside Python's lock, but the code between its calls runs inside it
_MOST_PIXELS = 60_000_000  # decoded at the same time


def default_workers() -> int:
    """Threads that this machine has processors for, at most four."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, count))


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    should_stop: Callable[[], bool] | None = None,
    *,
    ahead: int = 0,
) -> Generator[Result, None, None]:
    """The results of `work` for each item, in the order of the items; it runs in `workers` threads.

    Args:
        should_stop: asked before each item is begun; those begun are finished.
        ahead: items that are begun before their results are asked for; 0 = as many as there are threads.

    Raises:
        Exception: the first error of `work`; items under way are finished, the rest is not begun.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="textual-inversion-pictures") as pool:
        try:
            for item in items:
                if should_stop and should_stop():
                    break
                waiting.append(pool.submit(work, item))
                if len(waiting) > (ahead or workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class PixelRoom:
    """Limits how many pixels are decoded at the same time; a picture above the limit waits until it is alone."""

    def __init__(self, most: int = _MOST_PIXELS) -> None:
        self._most, self._used = most, 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for that many pixels; they are free again on leaving."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._most)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()
