"""The training run: data once, then steps until the last one, an interrupt or a reason to stop. Knows nothing of pages or hosts.

Losses are read from the device only every few steps, so that the device never waits for the processor.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from textual_inversion import formats
from textual_inversion.diffusion.conditioning import VectorTable
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.embedding import Embedding
from textual_inversion.errors import (
    ConfigError,
    EmbeddingError,
    NonFiniteLossError,
    TextualInversionError,
    TrainingError,
    ZeroGradientError,
)
from textual_inversion.prompts.templates import DEFAULT_TEMPLATE, read_template, template_folder
from textual_inversion.settings.schedule import LearningRateSchedule
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.batches import BatchMaker, PromptMaker
from textual_inversion.training.data.prepare import InterruptedEncodingError, encode_pictures, list_pictures
from textual_inversion.training.embedding_file import GuardedFile, find_embedding
from textual_inversion.training.events import Event, Message, Started, StepDone, Stopped
from textual_inversion.training.recorder import Recorder
from textual_inversion.training.state import load_optimizer, optimizer_file, save_optimizer
from textual_inversion.training.step import TrainingStep

SAVE_SECONDS = 60.0  # how much work a crash can cost
_READ_EVERY = {"cpu": 1}  # steps between looks at the losses; elsewhere:
_READ_EVERY_ELSEWHERE = 10
_MOST_OVERFLOWS = 20  # in a row; the fp16 loss scale comes down from its highest to 1 in 16


def train(
    config: TrainingConfig,
    model: StableDiffusion,
    embeddings_dir: str | Path,
    *,
    listener: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Embedding:
    """Train the embedding `config.name` of a folder and write it back there.

    Args:
        config: the settings; `device` and `precision` are for whoever loads the model, which is used as it is.
        model: a loaded checkpoint; nothing in it changes.
        embeddings_dir: where the embedding's file is and stays.
        listener: told of everything that happens, in the calling thread.
        should_stop: asked after each few pictures encoded and before each step; the vectors learned so far are kept.

    Returns:
        The embedding as written.

    Raises:
        InvalidNameError: a name with a path in it.
        EmbeddingError: no such embedding, one that does not fit the checkpoint, or a file that cannot be written; where that happens
            at the end, the vectors are written elsewhere and the sentence says where.
        ConfigError: nothing left to do, or settings that contradict the data.
        DatasetError, PromptError: pictures or template that cannot be used.
        TrainingError: a loss that is not finite, a gradient that is zero; the last good vectors are written all the same.
    """
    path, embedding = find_embedding(Path(embeddings_dir), config.name)
    first = embedding.provenance.step or 0
    if first >= config.steps:
        trained = f"{first} step{'s' * (first != 1)}"
        raise ConfigError(f"{config.name!r} has been trained for {trained}; set steps above that to go on (they are {config.steps}).")
    lines = read_template(config.template or template_folder() / DEFAULT_TEMPLATE)
    table = VectorTable.of({config.name: embedding}, model.conditioner.encoder_name, model.conditioner.width, model.device)
    listed = list_pictures(config)
    prompts = PromptMaker(config, lines, [picture.caption for picture in listed.pictures], model.conditioner, table)
    try:
        data = encode_pictures(config, model, listed, listener, should_stop)
    except InterruptedEncodingError:
        listener(Started(config.name, first, config.steps, len(listed.pictures), listed.skipped))
        listener(Stopped(first, "interrupted", str(path)))
        return embedding
    listener(Started(config.name, first, config.steps, data.pictures, data.skipped))
    batches = BatchMaker(config, data.buckets, prompts, noise_device=model.device, repeats=data.repeats, first_step=first)
    data.buckets.clear()  # the maker has what it needs of them; of many pictures that is gigabytes less
    step = TrainingStep(model, table.vectors, config)
    if config.save_optimizer and (note := load_optimizer(optimizer_file(path), step.optimizer)):
        listener(Message(note))
    recorder = Recorder(config, model, listener, lines, prompts.captions[0])
    return Run(config, step, batches, recorder, listener, path, embedding).go(should_stop)


class _Unread(NamedTuple):
    """A step whose numbers are still on the device: scalars `loss`, `gradient` (norm) and `norm`, and the vectors [n, d] before it."""

    number: int
    learning_rate: float
    before: torch.Tensor
    loss: torch.Tensor
    gradient: torch.Tensor
    norm: torch.Tensor


@dataclass
class Run:
    """One run over prepared data."""

    config: TrainingConfig
    step: TrainingStep
    batches: BatchMaker
    recorder: Recorder
    listener: Callable[[Event], None]
    path: Path
    embedding: Embedding
    unread: list[_Unread] = field(default_factory=list)
    overflows: int = 0
    paused: float = 0.0

    def __post_init__(self) -> None:
        self.done = self.first = self.embedding.provenance.step or 0
        # the vectors that a finite loss was last seen with, kept where a lost device cannot take them along
        self.good = (self.done, self.step.vectors.detach().cpu().clone())
        self.checkpoint_hash = self._hash()
        self.file = GuardedFile(self.path, self.embedding)

    def go(self, should_stop: Callable[[], bool]) -> Embedding:
        """Train to the end; what was learned is written whatever happens."""
        self._save()  # a file that cannot be written is told now, not after hours
        reason, stopped_by = "", None
        try:
            reason = self._loop(should_stop)
        except TrainingError as error:
            stopped_by = error
        except BaseException:
            self._save_at_end()
            raise
        failure = self._end(stopped_by)
        self.listener(Stopped(self.done, str(failure or reason), str(self.path), failed=failure is not None))
        if failure:
            raise failure
        return self.embedding

    def _loop(self, should_stop: Callable[[], bool]) -> str:
        """Why it ended: `finished` or `interrupted`."""
        config = self.config
        rates = LearningRateSchedule(config.learning_rate)
        bounds = LearningRateSchedule(config.clip_schedule if config.clip_mode != "off" else 1.0)
        read_every = _READ_EVERY.get(self.step.vectors.device.type, _READ_EVERY_ELSEWHERE)
        self.started = self.saved_at = time.monotonic()
        while self.done < config.steps:
            if should_stop():
                self._read()
                return "interrupted"
            number = self.done + 1
            self._step(number, rates.at(number), bounds.at(number))
            self.done = number
            if len(self.unread) >= read_every or number == config.steps or self._wants_files(number):
                self._read()
            self._files(number)
        return "finished"

    def _step(self, number: int, rate: float, bound: float) -> None:
        before = self.step.vectors.detach().clone()
        try:
            loss, gradient = self.step.run(self.batches.next, rate, bound)
        except torch.cuda.OutOfMemoryError as error:
            size = self.config.batch_size
            raise TrainingError(
                f"The device ran out of memory at step {number}; use a smaller batch size (it is {size}) or smaller pictures."
            ) from error
        norm = torch.linalg.vector_norm(self.step.vectors.detach(), dim=1).mean()
        self.unread.append(_Unread(number, rate, before, loss, gradient, norm))

    def _read(self) -> None:
        """Fetch what the device has kept, tell the listener, and stop on what cannot be learned from."""
        if not self.unread:
            return
        rows, self.unread = self.unread, []
        numbers = torch.stack([torch.stack(row[3:]) for row in rows]).tolist()
        rate = (self.done - self.first) / max(1e-9, time.monotonic() - self.started - self.paused)
        left = (self.config.steps - self.done) / rate
        events, good, problem = [], None, None
        for row, (loss, gradient, norm) in zip(rows, numbers):
            if math.isfinite(loss):
                good = row
            problem = self._problem(row.number, loss, gradient)
            if problem:
                break
            events.append(StepDone(row.number, loss, row.learning_rate, norm, rate, left))
        if good:
            self.good = (good.number - 1, good.before.cpu())
        self.recorder.steps(events)
        for event in events:
            self.listener(event)
        if problem:
            self._go_back()
            raise problem

    def _problem(self, number: int, loss: float, gradient: float) -> TrainingError | None:
        hint = "a lower learning rate" + (" or precision fp32" if self.step.model.dtype != torch.float32 else "")
        if not math.isfinite(loss):
            return NonFiniteLossError(f"The loss became {loss} at step {number}; the last good vectors are kept. Try {hint}.")
        if gradient == 0.0:
            return ZeroGradientError(
                f"The gradient is exactly zero at step {number}, so nothing would be learned; check that the template holds [name], "
                "or try precision fp32."
            )
        self.overflows = 0 if math.isfinite(gradient) else self.overflows + 1
        if self.overflows < _MOST_OVERFLOWS:
            return None
        return TrainingError(
            f"The gradient was not finite in the {self.overflows} steps up to {number}, so nothing is learned; try {hint}."
        )

    @torch.no_grad()
    def _go_back(self) -> None:
        self.done = self.good[0]
        self.step.vectors.copy_(self.good[1])

    def _wants_files(self, number: int) -> bool:
        config = self.config
        return any(every and number % every == 0 for every in (config.copy_every, config.preview_every))

    def _files(self, number: int) -> None:
        """Copies and previews that are due, and now and then the embedding itself; their time does not count as training."""
        begun = time.monotonic()
        config = self.config
        if config.copy_every and number % config.copy_every == 0:
            self.recorder.copy(self._current(), number)
        if config.preview_every and number % config.preview_every == 0:
            self.recorder.preview(self._current(), number)
        if begun - self.saved_at > SAVE_SECONDS:
            self._read()
            try:
                self._save()
            except EmbeddingError as error:  # it may pass, and what was learned is still here
                self.listener(Message(str(error)))
            self.saved_at = time.monotonic()
        self.paused += time.monotonic() - begun

    def _current(self) -> Embedding:
        return self._embedding(self.done, self.step.vectors.detach())

    def _embedding(self, step: int, learned: torch.Tensor) -> Embedding:
        model = self.step.model
        vectors = {**self.embedding.vectors, model.conditioner.encoder_name: learned}
        return self.embedding.with_vectors(vectors, step=step, checkpoint_name=model.name, checkpoint_hash=self.checkpoint_hash)

    def _hash(self) -> str | None:
        try:
            return self.step.model.hash
        except OSError as error:
            self.listener(Message(f"The embedding will not name its checkpoint's hash, because that file cannot be read: {error}."))
            return None

    def _save(self) -> None:
        self.embedding = self._current()
        self.file.write(self.embedding)
        self._save_optimizer()

    def _save_optimizer(self) -> None:
        if not self.config.save_optimizer:
            return
        try:
            save_optimizer(optimizer_file(self.path), self.step.optimizer)
        except EmbeddingError as error:  # the vectors are what counts
            self.listener(Message(str(error)))

    def _end(self, failure: TextualInversionError | None) -> TextualInversionError | None:
        """Write the vectors; returns what went wrong, now or before."""
        try:
            self._save_at_end()
        except EmbeddingError as error:
            return type(failure)(f"{failure} {error}") if failure else error
        if failure is None:  # after one, the moments belong to vectors that were not kept
            self._save_optimizer()
        return failure

    def _save_at_end(self) -> None:
        """Write the last good vectors, if need be to another place.

        Raises:
            EmbeddingError: they are not where they belong; it says where they are.
        """
        self.embedding = self._last_good()
        self.done = self.embedding.provenance.step or 0
        try:
            self.file.write(self.embedding)
        except EmbeddingError as error:
            self._save_elsewhere(error)

    def _last_good(self) -> Embedding:
        try:
            current = self._current()
        except RuntimeError:  # the device is lost, and with it what came after
            return self._embedding(*self.good)
        finite = all(bool(torch.isfinite(vectors).all()) for vectors in current.vectors.values())
        return current if finite else self._embedding(*self.good)

    def _save_elsewhere(self, reason: EmbeddingError) -> None:
        for folder in self._other_folders():
            other = folder / f"{self.path.stem}-{self.done}-rescued.safetensors"
            try:
                self.path = formats.save(self.embedding, other, overwrite=True)
            except EmbeddingError:
                continue
            raise EmbeddingError(f"{reason} What was learned until step {self.done} is in {self.path}; move it from there.") from reason
        raise reason

    def _other_folders(self) -> Iterator[Path]:
        if self.recorder.folder:
            yield self.recorder.folder
        yield Path(os.path.expanduser("~"))
        yield Path(tempfile.gettempdir())


__all__ = ["find_embedding", "train"]
