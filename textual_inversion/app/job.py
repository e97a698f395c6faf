"""The background job (one at a time), its state for the page, and the progress of txt2img."""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from textual_inversion.app.curve import LossCurve, short_number
from textual_inversion.app.kept_run import NAME as _KEPT
from textual_inversion.app.kept_run import KeptRun, Points, read_kept
from textual_inversion.errors import EmbeddingError, TextualInversionError
from textual_inversion.training.events import Busy, CopySaved, Evaluated, Event, Judged, Message, PreviewDrawn, Started, StepDone, Stopped

_KEPT_MESSAGES = 40
_OPTION = re.compile(r" \(--[a-z-]+\)")  # an option of the command line, which a page does not have
_log = logging.getLogger(__name__)


class JobKind(str, Enum):
    """The kind of a job; a page has its own texts for each."""

    TRAIN = "train"
    PREPROCESS = "preprocess"
    LOOK = "look"  # plan pictures for review before preprocessing
    CHECK = "check"  # check embedding files for code
    INSTALL = "install"  # fetch embeddings from web addresses


@dataclass(frozen=True)
class Advanced:
    """Progress of a job without a loss, such as preprocessing: `done` of `total` things."""

    done: int
    total: int


JobEvent = Event | Advanced
Listener = Callable[[JobEvent], None]
ShouldStop = Callable[[], bool]
Work = Callable[[Listener, ShouldStop], str | None]


def never() -> bool:
    """A `ShouldStop` that never stops the work."""
    return False


def silent(event: JobEvent) -> None:
    """A `Listener` that ignores every event."""


class JobRunningError(TextualInversionError):
    """A job cannot start while another job runs."""


class StoppedWaitingError(Exception):
    """A run was interrupted before its turn in the WebUI's queue. The engine catches this; callers never see it."""


class Job:
    """Runs one piece of work in its own thread and keeps its state, also after the end. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._version = 0
        self._begun = 0.0
        self._kept: Path | None = None
        self._reset(None, "", None)
        self._state["phase"] = "idle"

    @property
    def running(self) -> bool:
        """Whether work is under way."""
        with self._lock:
            return self._thread is not None and self._thread.is_alive() and not self._over

    def about(self, kind: JobKind, name: str | None = None) -> bool:
        """Whether a job of this kind is running; with a `name`, whether it is about this name."""
        with self._lock:
            return self.running and self._state["kind"] == kind and name in (None, self._state["name"])

    @property
    def folder(self) -> Path | None:
        """Folder with the files that the page may show; None when the job writes none."""
        with self._lock:
            return self._folder

    @property
    def name(self) -> str:
        """Subject of the last job, such as the embedding's name; empty when there was no job."""
        with self._lock:
            return str(self._state["name"])

    @property
    def id(self) -> str:
        """Id of the last job, used in addresses; empty when there was no job."""
        with self._lock:
            return str(self._state["job"])

    def start(self, kind: JobKind, name: str, work: Work, folder: Path | None = None) -> str:
        """Begin `work(listener, should_stop)` in the background and return the job's id.

        Args:
            kind: chooses what a page shows.
            name: the subject of the job, such as the embedding's name.
            work: reports through `listener`; if it returns a sentence, the page shows this as the outcome.
            folder: the only folder that `picture` serves files from.

        Raises:
            JobRunningError: another job is still running.
        """
        with self._lock:
            if self.running:
                raise JobRunningError(f"{self.name!r} is still at work; interrupt it or wait until it is done.")
            self._reset(kind, name, folder)
            self._stop.clear()
            self._begun = time.monotonic()
            self._thread = threading.Thread(target=self._run, args=(work,), name=f"textual-inversion-{kind.value}", daemon=True)
            self._thread.start()
            return self.id

    def interrupt(self) -> bool:
        """Ask the work to stop after the current step; False when nothing runs."""
        with self._lock:
            if not self.running:
                return False
            self._stop.set()
            self._state["phase"] = "stopping"
            self._version += 1
            return True

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the work is over, at most `timeout` seconds; True when it is."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return not self.running

    def snapshot(self) -> dict[str, Any]:
        """The complete state for a page, ready for JSON; `version` rises with every change."""
        with self._lock:
            shown = {key: list(value) if isinstance(value, list) else value for key, value in self._state.items()}
            shown["points"] = self._all_points()
            shown["seconds"] = short_number(time.monotonic() - self._begun if self.running else self._seconds)
            shown["version"] = self._version
            return shown

    def picture(self, job: str, file: str) -> Path | None:
        """The preview `file` of job `job`, if the job wrote it; None for everything else."""
        with self._lock:
            known = job == self._state["job"] and any(preview["file"] == file for preview in self._state["previews"])
            return self._preview_paths.get(file) if known else None

    def copy(self, job: str, step: int) -> Path:
        """The copy that job `job` has saved at `step`.

        Raises:
            EmbeddingError: there is none.
        """
        with self._lock:
            path = self._copy_paths.get(step) if job == self._state["job"] else None
        if path is None:
            raise EmbeddingError(f"No copy of step {step} is kept in this run.")
        return path

    def preview(self, step: int) -> Path | None:
        """The preview that the last job has drawn at `step` with its first prompt; None where there is none."""
        with self._lock:
            files = [preview["file"] for preview in self._state["previews"] if preview["step"] == step and not preview["row"]]
            return self._preview_paths[files[-1]] if files else None

    def use_step(self, name: str, step: int | None) -> None:
        """Tell the pages that `name` now holds the vectors of `step` of the last job; None = those of its end."""
        with self._lock:
            if self._state["name"] == name:
                self._state["used_step"] = step
                self._version += 1
                self._keep()

    def _reset(self, kind: JobKind | None, name: str, folder: Path | None) -> None:
        self._curve = LossCurve()
        self._points: Points | None = None  # of a run from before the program's start; otherwise the curve has them
        self._folder = folder
        self._preview_paths: dict[str, Path] = {}
        self._copy_paths: dict[int, Path] = {}
        self._over = False
        self._work_was_interrupted = False  # also set when the WebUI's own Interrupt button ended the work
        self._seconds = 0.0
        self._version += 1
        self._state: dict[str, Any] = {
            "job": uuid.uuid4().hex[:8] if kind else "",
            "kind": kind.value if kind else "",
            "name": name,
            "phase": "starting",
            "step": 0,
            "first_step": 0,
            "last_step": 0,
            "images": 0,
            "loss": None,
            "smooth": None,
            "learning_rate": None,
            "vector_norm": None,
            "steps_per_second": None,
            "seconds_left": None,
            "previews": [],
            "copies": [],
            "messages": [],
            "remarks": [],
            "evaluations": [],
            "verdict": None,
            "busy_with": "",
            "used_step": None,
            "reason": "",
            "failed": False,
            "file": "",
        }

    def renamed(self, name: str, new_name: str, folder: Path, new_folder: Path) -> None:
        """Tell the pages that the embedding `name` has a new name, and that the files of its runs lie in another folder."""
        with self._lock:
            if self._state["name"] not in (name, new_name):
                return
            self._state["name"] = new_name
            self._preview_paths = {file: _moved(path, folder, new_folder) for file, path in self._preview_paths.items()}
            self._copy_paths = {step: _moved(path, folder, new_folder) for step, path in self._copy_paths.items()}
            self._folder = _moved(self._folder, folder, new_folder) if self._folder else None
            self._version += 1
            self._keep()

    def keep_in(self, folder: Path) -> None:
        """Keep the state of the last training run in `folder` from now on; show the one that is kept there, where there was no job yet.

        The files of a run must lie below that folder to be shown again.
        """
        with self._lock:
            self._kept = folder / _KEPT
            if not self._state["job"] and (kept := read_kept(self._kept, self._state)):
                self._state, self._points = dict(kept.state), kept.points
                self._folder, self._preview_paths, self._copy_paths = kept.folder, dict(kept.previews), dict(kept.copies)
                self._seconds = kept.seconds
                self._version += 1

    def _keep(self) -> None:
        """Write the state of a training run that is over; a failure is logged only."""
        with self._lock:
            points = self._all_points()
            if self._kept is None or self._folder is None or self._state["kind"] != JobKind.TRAIN.value or not points or self.running:
                return
            kept = KeptRun(self._state, points, self._folder, self._preview_paths, self._copy_paths, self._seconds)
            try:
                kept.write(self._kept)
            except OSError:
                _log.exception("The state of the run was not kept in %s", self._kept)

    def _all_points(self) -> Points:
        return self._curve.points() if self._points is None else self._points

    def _run(self, work: Work) -> None:
        try:
            outcome = work(self._listen, self._stop.is_set)
        except Exception as error:  # noqa: BLE001  outermost frame of the thread: no caller could report the error to the page
            self._finish(user_message(error), failed=True)
        else:
            self._finish(outcome or "", failed=False)

    def _finish(self, reason: str, *, failed: bool) -> None:
        with self._lock:
            state = self._state
            if not (state["failed"] and state["reason"]):  # keep the trainer's own reason: it is more precise than this error
                state["reason"] = reason or state["reason"]
                state["failed"] = failed or state["failed"]
            interrupted = self._stop.is_set() or self._work_was_interrupted
            state["phase"] = "failed" if state["failed"] else "interrupted" if interrupted else "finished"
            state["seconds_left"], state["busy_with"] = None, ""
            self._seconds = time.monotonic() - self._begun
            self._over = True
            self._version += 1
            self._keep()

    def _listen(self, event: JobEvent) -> None:
        with self._lock:
            self._take(event)
            self._version += 1

    def _take(self, event: JobEvent) -> None:
        state = self._state
        state["busy_with"] = event.text if isinstance(event, Busy) else ""
        if isinstance(event, (Evaluated, Judged)):
            self._take_measured(event)
        elif isinstance(event, StepDone):
            self._take_step(event)
        elif isinstance(event, Advanced):
            state.update(step=event.done, last_step=event.total)
            self._leave_starting_phase()
        elif isinstance(event, Started):
            state.update(
                name=event.name, first_step=event.first_step, step=event.first_step, last_step=event.last_step, images=event.images
            )
            self._curve = LossCurve(event.last_step - event.first_step)
            for file, reason in event.skipped:
                self._add_message(left_out(Path(file).name, reason), important=True)
        elif isinstance(event, Message):
            self._add_message(event.text, important=event.important)
        elif isinstance(event, PreviewDrawn):
            path = Path(event.path)
            self._preview_paths[path.name] = path
            state["previews"].append({"step": event.step, "file": path.name, "prompt": event.prompt, "seed": event.seed, "row": event.row})
        elif isinstance(event, CopySaved):
            self._copy_paths[event.step] = Path(event.path)
            state["copies"].append({"step": event.step, "file": Path(event.path).name})
        elif isinstance(event, Stopped):
            self._work_was_interrupted = event.reason == "interrupted"
            reason = "" if event.reason in ("finished", "interrupted") else for_page(event.reason)
            state.update(step=event.step, reason=reason, failed=event.failed, file=Path(event.path).name)

    def _take_step(self, event: StepDone) -> None:
        self._state.update(
            step=event.step,
            loss=short_number(event.loss),
            smooth=short_number(self._curve.add(event)),
            learning_rate=short_number(event.learning_rate),
            vector_norm=short_number(event.vector_norm),
            steps_per_second=short_number(event.steps_per_second),
            seconds_left=short_number(event.seconds_left),
        )
        self._leave_starting_phase()

    def _take_measured(self, event: Evaluated | Judged) -> None:
        if isinstance(event, Evaluated):
            _replace_last(self._state["evaluations"], [event.step, short_number(event.loss)])
            return
        norms = {encoder: [None if norm is None else short_number(norm) for norm in rows] for encoder, rows in event.norms.items()}
        words = {encoder: list(rows) for encoder, rows in event.words.items()}
        ranges = {encoder: [short_number(norm) for norm in three] for encoder, three in event.range.items()}
        verdict = {"step": event.step, "level": event.level, "text": event.text, "words": words, "norms": norms, "range": ranges}
        self._state["verdict"] = verdict

    def _leave_starting_phase(self) -> None:
        if self._state["phase"] == "starting":
            self._state["phase"] = "working"

    def _add_message(self, text: str, *, important: bool) -> None:
        for kind in ("messages", "remarks") if important else ("messages",):
            messages = self._state[kind]
            messages.append(for_page(text))
            del messages[:-_KEPT_MESSAGES]


class Drawing:
    """Progress of at most one drawing at a time; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = False
        self._done = self._total = 0
        self._stop = threading.Event()

    def begin(self) -> bool:
        """Start a drawing; False when another drawing is running."""
        with self._lock:
            if self._busy:
                return False
            self._busy, self._done, self._total = True, 0, 0
            self._stop.clear()
            return True

    def end(self) -> None:
        """Mark the drawing as ended."""
        with self._lock:
            self._busy = False

    def progress(self, done: int, total: int) -> None:
        """Record that `done` of `total` sampler steps are done."""
        with self._lock:
            self._done, self._total = done, total

    def interrupt(self) -> None:
        """Ask the drawing to stop; finished pictures are kept."""
        self._stop.set()

    def should_stop(self) -> bool:
        """Whether the user asked to stop."""
        return self._stop.is_set()

    def snapshot(self) -> dict[str, Any]:
        """The progress, ready for JSON."""
        with self._lock:
            return {"busy": self._busy, "done": self._done, "total": self._total}


def for_page(text: str) -> str:
    """A sentence without the options of the command line, which a page does not have."""
    return _OPTION.sub("", text)


def user_message(error: Exception) -> str:
    """The message for the user about an error. An unexpected error is logged with its traceback."""
    if isinstance(error, TextualInversionError):
        return for_page(str(error))
    if isinstance(error, OSError):
        return f"A file could not be read or written: {error.strerror or error}: {error.filename or ''}".rstrip(": ") + "."
    _log.error("not foreseen", exc_info=error)
    return f"Something unexpected happened ({type(error).__name__}: {error}); the console has the details."


def left_out(file: str, reason: str) -> str:
    """A sentence that says that `file` was not used, and why; the name is added unless the reason already has it."""
    return f"Left out: {reason}" if file in reason else f"Left out {file}: {reason}"


def _moved(path: Path, folder: Path, new_folder: Path) -> Path:
    """Where a file of `folder` is after the folder was moved; other files are where they were."""
    return new_folder / path.relative_to(folder) if folder in path.parents else path


def _replace_last(points: list[list[Any]], point: list[Any]) -> None:
    """Add a point; one of the same step is replaced."""
    if points and points[-1][0] == point[0]:
        points.pop()
    points.append(point)
