"""How far txt2img is, for the page's script, and the wish to stop. Knows nothing of models."""

from __future__ import annotations

import threading
from typing import Any


class Drawing:
    """Progress of at most one drawing at a time; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = False
        self._done = self._total = 0
        self._stop = threading.Event()

    def begin(self) -> bool:
        """Start counting; False when another drawing is under way."""
        with self._lock:
            if self._busy:
                return False
            self._busy, self._done, self._total = True, 0, 0
            self._stop.clear()
            return True

    def end(self) -> None:
        """Nothing is being drawn any more."""
        with self._lock:
            self._busy = False

    def progress(self, done: int, total: int) -> None:
        """`done` of `total` sampler steps."""
        with self._lock:
            self._done, self._total = done, total

    def interrupt(self) -> None:
        """Ask the drawing to stop; pictures that are done are kept."""
        self._stop.set()

    def should_stop(self) -> bool:
        """Whether somebody asked to stop."""
        return self._stop.is_set()

    def snapshot(self) -> dict[str, Any]:
        """Ready for JSON."""
        with self._lock:
            return {"busy": self._busy, "done": self._done, "total": self._total}
