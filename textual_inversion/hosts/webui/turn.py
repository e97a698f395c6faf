"""The turn of one of our jobs in the WebUI: its queue, its progress bar, its Interrupt button, its tensorboard option."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules import progress, shared
from modules.call_queue import queue_lock

from textual_inversion.app.job import JobEvent, Listener, ShouldStop, never, silent
from textual_inversion.hosts.webui.options import host_option
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.events import Message, PreviewDrawn, Started, StepDone

_LOOK_SECONDS = 0.1
_RELOAD_SECONDS = 60.0  # longer than a WebUI takes to load its scripts

#: Set while this extension is loaded. While the WebUI loads its scripts again it is clear, and the WebUI reads embedding files itself.
scripts_loaded = threading.Event()
scripts_loaded.set()


@contextmanager
def queue_if_free() -> Iterator[bool]:
    """Hold the WebUI's queue inside if nothing else does; whether it is held."""
    held = bool(queue_lock.acquire(blocking=False))
    try:
        yield held
    finally:
        if held:
            queue_lock.release()


class StoppedWaitingError(Exception):
    """The job was interrupted before its turn came; never leaves the host."""


@contextmanager
def queue_turn(should_stop: ShouldStop = never, waiting: Listener = silent) -> Iterator[None]:
    """Hold the WebUI's queue inside, so that nothing else loads, draws or trains.

    A job that ends while the WebUI loads its scripts again holds it until that is done: a picture that waits behind it would be drawn
    with what the WebUI's own reader makes of the files.

    Raises:
        StoppedWaitingError: `should_stop` said so before the turn came.
    """
    if not queue_lock.acquire(blocking=False):
        waiting(Message("Waiting until the WebUI has done what it is at"))
        _wait_for_turn(should_stop)
    try:
        yield
    finally:
        scripts_loaded.wait(_RELOAD_SECONDS)
        queue_lock.release()


def _wait_for_turn(should_stop: ShouldStop) -> None:
    """The lock has no time limit, and asking again and again would never be served: a thread stands in line meanwhile."""
    turn, given_up = threading.Event(), threading.Event()
    deciding = threading.Lock()

    def stand_in_line() -> None:
        queue_lock.acquire()
        with deciding:
            if given_up.is_set():
                queue_lock.release()
            turn.set()

    threading.Thread(target=stand_in_line, name="textual-inversion-queue", daemon=True).start()
    while not turn.wait(_LOOK_SECONDS):
        if should_stop():
            with deciding:
                if not turn.is_set():
                    given_up.set()
                    raise StoppedWaitingError


class Progress:
    """Shows a job's events in the WebUI's own progress bar, and hears its Interrupt button."""

    def __init__(self, listener: Listener, should_stop: ShouldStop) -> None:
        self._listener, self._should_stop = listener, should_stop
        self._first = 0

    def listen(self, event: JobEvent) -> None:
        """Take an event and pass it on."""
        state = shared.state
        if isinstance(event, Started):
            self._first = event.first_step
            state.job_count = max(1, event.last_step - event.first_step)
        elif isinstance(event, StepDone):
            state.job_no = event.step - self._first
            state.textinfo = f"step {event.step}, loss {event.loss:.4f}"
        elif isinstance(event, PreviewDrawn):
            _show_preview(Path(event.path))
        elif isinstance(event, Message):
            state.textinfo = event.text
        self._listener(event)

    def should_stop(self) -> bool:
        """Whether this job or the WebUI was interrupted."""
        return self._should_stop() or shared.state.interrupted or shared.state.stopping_generation


@contextmanager
def running(name: str, listener: Listener, should_stop: ShouldStop) -> Iterator[Progress]:
    """Be the WebUI's current job inside; the queue must be held.

    Args:
        name: a word for the task's id, as the WebUI's page asks for its progress by.
    """
    task = task_id(name)
    state = shared.state
    state.begin(job=task)
    progress.start_task(task)
    try:
        yield Progress(listener, should_stop)
    finally:
        progress.finish_task(task)
        state.end()
        state.skipped = state.interrupted = state.stopping_generation = False
        state.textinfo = None


def task_id(name: str) -> str:
    """The id under which the WebUI's page may ask for a job's progress."""
    return f"task(textual-inversion-{name})"


def _show_preview(path: Path) -> None:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            shared.state.assign_current_image(picture.convert("RGB"))
    except (OSError, ValueError):
        return  # the page shows the file itself; this is a second view of it


@contextmanager
def tensorboard(config: TrainingConfig, listener: Listener) -> Iterator[Listener]:
    """A listener that also writes into `<log directory>/tensorboard`, where that is wanted and can be done."""
    writer = _writer(config, listener) if host_option("training_enable_tensorboard", False) and config.log_dir else None
    if writer is None:
        yield listener
        return

    def listen(event: JobEvent) -> None:
        listener(event)
        _write(writer, event)

    try:
        yield listen
    finally:
        writer.close()


def _writer(config: TrainingConfig, listener: Listener) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        listener(Message("Nothing is written for tensorboard, because it is not installed; Settings, Training turns this off."))
        return None
    seconds = int(host_option("training_tensorboard_flush_every", 120) or 120)
    try:
        return SummaryWriter(log_dir=str(Path(config.log_dir) / "tensorboard"), flush_secs=seconds)
    except OSError as error:
        listener(Message(f"Nothing is written for tensorboard: {error}."))
        return None


def _write(writer: Any, event: JobEvent) -> None:
    if isinstance(event, StepDone):
        writer.add_scalar("Loss/train", event.loss, event.step)
        writer.add_scalar("Learn rate/train", event.learning_rate, event.step)
        writer.add_scalar("Vector norm", event.vector_norm, event.step)
    elif isinstance(event, PreviewDrawn) and host_option("training_tensorboard_save_images", False):
        import numpy as np
        from PIL import Image

        with Image.open(event.path) as picture:
            writer.add_image("Preview", np.asarray(picture.convert("RGB")), event.step, dataformats="HWC")
