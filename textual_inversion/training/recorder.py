"""What a run leaves on the disk beside the embedding: loss table, numbered copies, previews. Knows nothing of gradients.

A file that cannot be written here costs a message, never the run.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from textual_inversion import formats
from textual_inversion.diffusion.generate import draw_prompts
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.embedding import Embedding
from textual_inversion.errors import TextualInversionError
from textual_inversion.prompts.templates import fill
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.events import CopySaved, Event, Message, PreviewDrawn, StepDone

CSV_COLUMNS = ("step", "loss", "learning_rate", "vector_norm", "steps_per_second")
Listener = Callable[[Event], None]


class Recorder:
    """Writes into `config.log_dir`; does nothing where that is empty.

    Args:
        lines: the template's lines and `caption` a picture's caption: the preview's prompt where the settings give none.
    """

    def __init__(self, config: TrainingConfig, model: StableDiffusion, listener: Listener, lines: Sequence[str], caption: str) -> None:
        self.config, self.model, self.listener = config, model, listener
        self.folder = Path(config.log_dir).expanduser() if config.log_dir else None
        prompt = config.preview_prompt or lines[0]
        self.preview_prompt = fill(prompt, f"<{config.name}>", caption) if "[" in prompt else prompt
        self._told: set[str] = set()
        if self.folder is None and (config.copy_every or config.preview_every):
            listener(Message("No copies or previews are written, because the log directory is empty; set one to get them."))
        self._try("the log directory", self._start)

    def _start(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n", encoding="utf-8")

    def steps(self, done: Sequence[StepDone]) -> None:
        """Append rows of the loss table."""
        every = self.config.csv_every
        rows = [[getattr(event, column) for column in CSV_COLUMNS] for event in done if every and event.step % every == 0]
        if rows:
            self._try("the loss table", lambda folder: self._append(folder / "loss.csv", rows))

    def _append(self, path: Path, rows: list[list[float]]) -> None:
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(CSV_COLUMNS)
            writer.writerows(rows)

    def copy(self, embedding: Embedding, step: int) -> None:
        """Save a numbered copy that can be used like any other embedding."""
        self._try("the copy", lambda folder: self._copy(folder / f"{self.config.name}-{step}.safetensors", embedding, step))

    def _copy(self, path: Path, embedding: Embedding, step: int) -> None:
        formats.save(embedding, path, overwrite=True)
        self.listener(CopySaved(step, str(path)))

    def preview(self, embedding: Embedding, step: int) -> None:
        """Draw what has been learned so far."""
        self._try("the preview", lambda folder: self._preview(folder / f"{self.config.name}-{step}.png", embedding, step))

    def _preview(self, path: Path, embedding: Embedding, step: int) -> None:
        config = self.config
        settings = GenerationSettings(
            prompt=self.preview_prompt,
            negative_prompt=config.preview_negative_prompt,
            steps=config.preview_steps,
            sampler=config.preview_sampler,
            cfg_scale=config.preview_cfg_scale,
            width=config.preview_width or config.width,
            height=config.preview_height or config.height,
            clip_skip=config.clip_skip,
        )
        prompts = [(self.preview_prompt, config.preview_seed)]
        (picture,) = draw_prompts(self.model, prompts, settings, {embedding.name: embedding})
        picture.save(path)
        self.listener(PreviewDrawn(step, str(path), self.preview_prompt, config.preview_seed))

    def _try(self, what: str, write: Callable[[Path], None]) -> None:
        if self.folder is None:
            return
        try:
            write(self.folder)
        except (OSError, TextualInversionError) as error:
            self._tell(f"{what.capitalize()} was not written: {error}")
        except torch.cuda.OutOfMemoryError:
            self._tell(f"{what.capitalize()} was not written: the device ran out of memory.")

    def _tell(self, problem: str) -> None:
        """Once is enough: a full disk says the same at every step."""
        if problem not in self._told:
            self._told.add(problem)
            self.listener(Message(problem))
