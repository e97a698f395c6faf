"""The turn of one of our jobs in the WebUI: its queue, its progress bar, its Interrupt button, its tensorboard option."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules import progress, shared
from modules.call_queue import queue_lock

from textual_inversion.app.job import JobEvent, Listener, ShouldStop, StoppedWaitingError, never, silent
from textual_inversion.app.port import Turn
from textual_inversion.files import open_regular
from textual_inversion.hosts.webui.options import host_option
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.events import Message, PreviewDrawn, Started, StepDone

_ASK_SECONDS = 0.1
_RELOAD_SECONDS = 60.0  # longer than a WebUI takes to load its scripts

#: Set while this extension is loaded. Cleared while the WebUI reloads its scripts; then the WebUI's own reader reads embedding files.
scripts_loaded = threading.Event()
scripts_loaded.set()
_this_thread = threading.local()  # `has_queue`: whether this thread holds the WebUI's queue for one of our runs


@contextmanager
def queue_if_free() -> Iterator[bool]:
    """Hold the WebUI's queue inside if nothing else does; yields whether this thread holds it."""
    if getattr(_this_thread, "has_queue", False):
        yield True
        return
    acquired = bool(queue_lock.acquire(blocking=False))
    try:
        yield acquired
    finally:
        if acquired:
            queue_lock.release()


@contextmanager
def queue_turn(listener: Listener = silent, should_stop: ShouldStop = never) -> Iterator[None]:
    """Hold the WebUI's queue inside, so that nothing else loads, draws or trains.

    A job that ends while the WebUI reloads its scripts holds the queue until the reload ends. Otherwise a picture that waits behind
    the job would be drawn with the embeddings of the WebUI's own reader.

    Raises:
        StoppedWaitingError: `should_stop` said so before the turn came.
    """
    if not queue_lock.acquire(blocking=False):
        listener(Message("Waiting until the WebUI has done what it is at"))
        _wait_for_turn(should_stop)
    _this_thread.has_queue = True
    try:
        yield
    finally:
        scripts_loaded.wait(_RELOAD_SECONDS)
        _this_thread.has_queue = False
        queue_lock.release()


def _wait_for_turn(should_stop: ShouldStop) -> None:
    """Acquire the queue's lock, or stop waiting when `should_stop` returns true.

    The lock has no timeout, and a thread that only polls it never gets it. So a separate thread waits in the queue.
    """
    turn, given_up = threading.Event(), threading.Event()
    deciding = threading.Lock()

    def stand_in_line() -> None:
        queue_lock.acquire()
        with deciding:
            if given_up.is_set():
                queue_lock.release()
            turn.set()

    threading.Thread(target=stand_in_line, name="textual-inversion-queue", daemon=True).start()
    while not turn.wait(_ASK_SECONDS):
        if should_stop():
            with deciding:
                if not turn.is_set():
                    given_up.set()
                    raise StoppedWaitingError


class Progress:
    """Shows a run's events in the WebUI's own progress bar, and reacts to its Interrupt button."""

    def __init__(self, listener: Listener, should_stop: ShouldStop) -> None:
        self._listener, self._should_stop = listener, should_stop
        self._first = 0

    def listen(self, event: JobEvent) -> None:
        """Show an event and pass it on."""
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
def take_turn(config: TrainingConfig, listener: Listener, should_stop: ShouldStop) -> Iterator[Turn]:
    """Wait for the WebUI's queue, then hold it inside and be the WebUI's current job.

    Raises:
        StoppedWaitingError: `should_stop` said so before the turn came.
    """
    with queue_turn(listener, should_stop), _current_job(task_id(config.name)):
        progress_bar = Progress(listener, should_stop)
        with tensorboard(config, progress_bar.listen) as listen:
            yield Turn(config, listen, progress_bar.should_stop)


@contextmanager
def _current_job(task: str) -> Iterator[None]:
    state = shared.state
    state.begin(job=task)
    progress.start_task(task)
    try:
        yield
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
        with open_regular(path) as file, Image.open(file) as picture:
            shared.state.assign_current_image(picture.convert("RGB"))
    except (OSError, ValueError):
        return  # the page shows the file itself; this is a second view of it


@contextmanager
def tensorboard(config: TrainingConfig, listener: Listener) -> Iterator[Listener]:
    """A listener that also writes to `<log directory>/tensorboard`, if the WebUI's option is on and tensorboard is usable."""
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

        with open_regular(event.path) as file, Image.open(file) as picture:
            writer.add_image("Preview", np.asarray(picture.convert("RGB")), event.step, dataformats="HWC")
