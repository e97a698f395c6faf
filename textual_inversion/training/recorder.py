"""Writes a run's further files: settings, loss table, numbered copies, previews.

A file that cannot be written causes a message and does not stop the run.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from textual_inversion import formats
from textual_inversion.diffusion.generate import draw_prompts
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.embedding import Embedding
from textual_inversion.errors import TextualInversionError
from textual_inversion.files import open_regular, os_error_text, read_regular, replace_file
from textual_inversion.prompts.names import tag_of
from textual_inversion.prompts.templates import fill
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.events import CopySaved, Evaluated, Event, Judged, Message, PreviewDrawn, StepDone
from textual_inversion.training.memory import vae_at_work
from textual_inversion.training.preview_prompts import PreviewPrompt, preview_prompts

CSV_COLUMNS = ("step", "loss", "learning_rate", "vector_norm", "steps_per_second")
EVALUATION_COLUMNS = ("step", "loss")
_MOST_TABLE_BYTES = 2**28
Listener = Callable[[Event], None]


class Recorder:
    """Writes into `config.log_dir`; does nothing where that is empty.

    Args:
        lines: the template's lines; the first is the preview's prompt where the settings give none.
        caption: a picture's caption, which fills that line.
        first_step: steps done before the run. Later rows at the end of the tables come from a run that was killed, and are replaced.
    """

    def __init__(
        self, config: TrainingConfig, model: StableDiffusion, listener: Listener, lines: Sequence[str], caption: str, first_step: int = 0
    ) -> None:
        self._first_step, self._begun = first_step, set[str]()
        self.config, self.model, self.listener = config, model, listener
        self.folder = Path(config.log_dir).expanduser() if config.log_dir else None
        rows = preview_prompts(config, lines[0])
        self._rows = [replace(row, prompt=fill(row.prompt, tag_of(config.name), caption)) if "[" in row.prompt else row for row in rows]
        self._reported: set[str] = set()
        self._writer = ThreadPoolExecutor(1, "textual-inversion-copies")  # its thread starts with the first copy
        self._copied: set[Path] = set()
        self._copies: deque[tuple[int, Path, Future[Path]]] = deque()
        if self.folder is None:
            if config.copy_every or config.preview_every:
                listener(Message("No copies or previews are written, because the log directory is empty; set one to get them."))
            return
        with self._report_errors("The log directory"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not _holds_runs_of(self.folder, config.name):
                self._first_step = 0  # its tables are those of another word
            settings = json.dumps(config.to_dict(), indent=2) + "\n"
            replace_file(self.folder / "settings.json", settings.encode("utf-8"), durable=False)

    def steps(self, events: Sequence[StepDone]) -> None:
        """Append rows to the loss table, and report the copies that were written meanwhile."""
        self._report_copies()
        every = self.config.csv_every
        rows = [[getattr(event, column) for column in CSV_COLUMNS] for event in events if every and event.step % every == 0]
        if rows:
            self._append("loss.csv", "The loss table", CSV_COLUMNS, rows)

    def evaluation(self, event: Evaluated) -> None:
        """Append a row to the table of evaluations."""
        self._append("evaluation.csv", "The table of evaluations", EVALUATION_COLUMNS, [[event.step, event.loss]])

    def verdict(self, event: Judged) -> None:
        """Write the latest verdict, with the measured norms and the nearest words."""
        if self.folder is None:
            return
        with self._report_errors("The verdict"):
            text = json.dumps(asdict(event), indent=2) + "\n"
            replace_file(self.folder / "verdict.json", text.encode("ascii"), durable=False)

    def _append(self, file_name: str, what: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        if self.folder is None:
            return
        path = self.folder / file_name
        with self._report_errors(what):
            if self._first_step and file_name not in self._begun:
                _drop_rows_from(path, int(str(rows[0][0])))
            self._begun.add(file_name)
            is_new = not path.exists()
            with open_regular(path, "a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if is_new:
                    writer.writerow(columns)
                writer.writerows(rows)

    def copy(self, embedding: Embedding, step: int) -> Path | None:
        """Save a numbered copy that can be used like any other embedding, in another thread; a step has one copy.

        Returns:
            The file; None without a log folder.
        """
        if self.folder is None:
            return None
        path = self.folder / f"{self.config.name}-{step}.safetensors"
        if path in self._copied:
            return path
        self._copied.add(path)
        self._copies.append((step, path, self._writer.submit(formats.save, embedding, path, overwrite=True)))
        return path

    def _report_copies(self, *, wait: bool = False) -> None:
        """Report the copies that are written; with `wait`, all of them."""
        while self._copies and (wait or self._copies[0][2].done()):
            step, path, written = self._copies.popleft()
            with self._report_errors("The copy"):
                written.result()
                self.listener(CopySaved(step, str(path)))

    def close(self) -> None:
        """Wait until everything is written."""
        self._report_copies(wait=True)
        self._writer.shutdown()

    def preview(self, embedding: Embedding, step: int) -> None:
        """Draw what has been learned so far, a picture for each prompt."""
        if self.folder is None:
            return
        for number, row in enumerate(self._rows):
            path = self.folder / f"{self.config.name}-{step}{f'-{number + 1}' if number else ''}.png"
            with self._report_errors("The preview"):
                self._draw_preview(embedding, row, path)
                self.listener(PreviewDrawn(step, str(path), row.prompt, row.seed, number))

    def _draw_preview(self, embedding: Embedding, row: PreviewPrompt, path: Path) -> None:
        config = self.config
        settings = GenerationSettings(
            prompt=row.prompt,
            negative_prompt=row.negative_prompt,
            steps=config.preview_steps,
            sampler=config.preview_sampler,
            cfg_scale=config.preview_cfg_scale,
            width=config.preview_width or config.width,
            height=config.preview_height or config.height,
            clip_skip=config.clip_skip,
        )
        with vae_at_work(self.model):
            (picture,) = draw_prompts(self.model, [(row.prompt, row.seed)], settings, {embedding.name: embedding})
        replace_file(path, lambda file: picture.save(file, "png"), durable=False)

    @contextmanager
    def _report_errors(self, what: str) -> Iterator[None]:
        """Send a message where `what` cannot be written; once for each `what`, because a full disk fails at every step."""
        try:
            yield
            return
        except OSError as error:
            problem = f"{what} was not written to {self.folder}: {os_error_text(error)}."
        except TextualInversionError as error:
            problem = f"{what} was not written: {error}"
        except torch.cuda.OutOfMemoryError:
            problem = f"{what} was not written: the device ran out of memory."
        if problem not in self._reported:
            self._reported.add(problem)
            self.listener(Message(problem))


def _holds_runs_of(folder: Path, name: str) -> bool:
    """Whether the last run in a log directory was of this embedding."""
    try:
        settings = json.loads(read_regular(folder / "settings.json", _MOST_TABLE_BYTES))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("name") == name


def _drop_rows_from(path: Path, step: int) -> None:
    """Remove the rows at the end of a table that belong to `step` or a later one. Rows of earlier runs before them stay."""
    if not path.exists():
        return
    lines = read_regular(path, _MOST_TABLE_BYTES).splitlines(keepends=True)
    kept = len(lines)
    while kept > 1 and _is_superseded(lines[kept - 1], step):
        kept -= 1
    if kept < len(lines):
        replace_file(path, b"".join(lines[:kept]), durable=False)


def _is_superseded(line: bytes, step: int) -> bool:
    number = line.partition(b",")[0]
    return not line.endswith(b"\n") or not number.isdigit() or int(number) >= step  # a row that is cut off goes too
