"""Output of the command line: lines for people, a progress bar on a terminal, the events of a run, pictures."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.pictures.parameters import with_parameters
from textual_inversion.training.events import CopySaved, Event, Judged, Message, PreviewDrawn, Started, StepDone, Stopped

if TYPE_CHECKING:
    from PIL import Image
    from tqdm import tqdm


def printable(text: str) -> str:
    """`text` on one line, with control characters as escapes such as `\\x1b`: a file name could control the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def say(text: str, *, as_json: bool = False, error: bool = False) -> None:
    """Print a line for people: on standard output, or on standard error when standard output is for JSON or the line is an error."""
    stream = sys.stderr if as_json or error else sys.stdout
    encoding = stream.encoding or "utf-8"
    shown = printable(text).encode(encoding, errors="backslashreplace").decode(encoding)  # the terminal's encoding may lack characters
    print(shown, file=stream, flush=True)


@contextmanager
def logged() -> Iterator[None]:
    """Inside the context the package's warnings are printed as lines on standard error."""
    handler = _Lines(logging.WARNING)
    logger = logging.getLogger("textual_inversion")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Lines(logging.Handler):
    """Shows log records as lines for people."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage(), error=True)


def save_picture(picture: Image.Image, folder: Path, name: str) -> Path:
    """Write under the first free name of `name.png`, `name-2.png`, …, so that no other picture is overwritten; returns the path."""
    for number in count(1):
        path = folder / (f"{name}.png" if number == 1 else f"{name}-{number}.png")
        try:
            with path.open("xb") as file:
                picture.save(file, "PNG", pnginfo=with_parameters(picture))
        except FileExistsError:
            continue
        break
    return path


class Bar:
    """A progress bar on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def move(self, done: int, total: int, text: str) -> None:
        """Show `done` of `total` things."""
        if not sys.stderr.isatty():
            return
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, initial=done, leave=True, dynamic_ncols=True)
        self._bar.total = total
        self._bar.set_postfix_str(printable(text), refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Report:
    """Events of a run as a progress bar and lines, and as the JSON at the end.

    Args:
        as_json: standard output is for JSON.
        prefix: stands before each line.
        quiet: no lines and no bar for single steps, because another report has them.
    """

    def __init__(self, *, as_json: bool, prefix: str = "", quiet: bool = False) -> None:
        self.as_json, self.bar, self.stopped = as_json, Bar(), False
        self.prefix, self.quiet = prefix, quiet
        self.result: dict[str, Any] = {}
        self._restore: Callable[[], Any] = lambda: None

    def interruptible(self) -> Callable[[], bool]:
        """Let the first Ctrl+C end the run after its step and keep everything, and a second one end it at once. Returns a `should_stop`."""
        import signal

        before = signal.getsignal(signal.SIGINT)
        self._restore = lambda: signal.signal(signal.SIGINT, before)

        def stop(*_: Any) -> None:
            self.stopped = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        signal.signal(signal.SIGINT, stop)
        return lambda: self.stopped

    def __call__(self, event: Event) -> None:
        """Show an event, and note it for the JSON."""
        if isinstance(event, Started):
            self.result = {"name": event.name, "first_step": event.first_step, "images": event.images, "skipped": len(event.skipped)}
            self.first_step, self.last_step = event.first_step, event.last_step
            for _, reason in event.skipped:
                self.line(reason)
        elif isinstance(event, StepDone):
            self.result.update(step=event.step, loss=event.loss, vector_norm=event.vector_norm, steps_per_second=event.steps_per_second)
            if not self.quiet:
                self._step(event)
        elif isinstance(event, (PreviewDrawn, CopySaved)):
            self.result.setdefault("previews" if isinstance(event, PreviewDrawn) else "copies", []).append(event.path)
        elif isinstance(event, Message):
            self.line(event.text)
        elif isinstance(event, Judged):
            self.result.update(verdict=event.text, verdict_level=event.level)
        elif isinstance(event, Stopped):
            self.bar.close()
            self.result.update(step=event.step, reason=event.reason, embedding=event.path)
            if event.failed and self.prefix:  # of several; a single failure is what the command ends with
                self.line(event.reason)
            if not event.failed:
                self.line(f"{event.path}: step {event.step}, {event.reason}")
            if verdict := self.result.get("verdict"):
                self.line(verdict)

    def _step(self, event: StepDone) -> None:
        self.bar.move(event.step, self.last_step, f"loss {event.loss:.4f}")
        tenth = max(1, (self.last_step - self.first_step) // 10)
        if not sys.stderr.isatty() and (event.step - self.first_step) % tenth == 0:  # no terminal, so no bar
            speed = f"{event.steps_per_second:.1f} steps/s, {event.seconds_left:.0f} s left"
            self.line(f"step {event.step} of {self.last_step}, loss {event.loss:.4f}, {speed}")

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.close()
        say(f"{self.prefix}{text}", as_json=self.as_json)

    def close(self) -> None:
        """End the bar's line, and restore the earlier handling of Ctrl+C."""
        self.bar.close()
        self._restore()
