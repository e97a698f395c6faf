"""The training run from top to bottom: set up, step until the end, an interrupt or a reason to stop, and write what was learned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

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
from textual_inversion.files import os_error_text
from textual_inversion.prompts.templates import DEFAULT_TEMPLATE, read_template, template_folder
from textual_inversion.settings.schedule import LearningRateSchedule
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.text import counted
from textual_inversion.training.data.batches import BatchMaker, PromptMaker
from textual_inversion.training.data.encoding import InterruptedEncodingError, encode_pictures, list_pictures
from textual_inversion.training.embedding_file import GuardedFile, find_embedding
from textual_inversion.training.events import Event, Message, Started, StepDone, Stopped
from textual_inversion.training.recorder import Recorder
from textual_inversion.training.state import load_optimizer, optimizer_file, save_optimizer
from textual_inversion.training.step import TrainingStep

SAVE_SECONDS = 60.0  # time between two saves: the most work that a crash can lose
_READ_EVERY = {"cpu": 1}  # device -> steps between two readings of the losses; on all other devices:
_READ_EVERY_ELSEWHERE = 10
_MOST_OVERFLOWS = 20  # in a row; the fp16 loss scale falls from its highest value to 1 in 16


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
        config: the settings; `device` and `precision` are not used here, because the model is already loaded.
        model: a loaded checkpoint; nothing in it changes.
        embeddings_dir: where the embedding's file is and stays.
        listener: receives every event, in the calling thread.
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
    first_step = embedding.provenance.step or 0
    if first_step >= config.steps:
        trained = counted(first_step, "step")
        sentence = f"{config.name!r} has been trained for {trained}; set steps above that to go on (they are {config.steps})."
        raise ConfigError(sentence, setting="steps")
    lines = read_template(config.template or template_folder() / DEFAULT_TEMPLATE)
    table = VectorTable.of({config.name: embedding}, model.conditioner.encoder_name, model.conditioner.width, model.device)
    listed = list_pictures(config)
    prompts = PromptMaker(config, lines, [picture.caption for picture in listed.pictures], model.conditioner, table)
    try:
        data = encode_pictures(config, model, listed, listener, should_stop)
    except InterruptedEncodingError:
        listener(Started(config.name, first_step, config.steps, len(listed.pictures), listed.skipped))
        listener(Stopped(first_step, "interrupted", str(path)))
        return embedding
    listener(Started(config.name, first_step, config.steps, data.pictures, data.skipped))
    batches = BatchMaker(config, data.buckets, prompts, noise_device=model.device, repeats=data.repeats, first_step=first_step)
    data.buckets.clear()  # the batches have taken over what they need; with many pictures this frees gigabytes
    step = TrainingStep(model, table.vectors, config)
    if config.save_optimizer and (note := load_optimizer(optimizer_file(path), step.optimizer)):
        listener(Message(note))
    recorder = Recorder(config, model, listener, lines, prompts.captions[0])
    return Run(config, step, batches, recorder, listener, GuardedFile(path, embedding), embedding).train(should_stop)


@dataclass
class Run:
    """One run over prepared data: its loop and its end.

    Attributes:
        file: the embedding's file.
        embedding: the embedding as it was last written, at first as it was read.
    """

    config: TrainingConfig
    step: TrainingStep
    batches: BatchMaker
    recorder: Recorder
    listener: Callable[[Event], None]
    file: GuardedFile
    embedding: Embedding

    def __post_init__(self) -> None:
        self.done = self.embedding.provenance.step or 0  # steps
        self.monitor = StepMonitor(self.step, self.done, self.config.steps)
        self.checkpoint_hash: str | None = None
        try:
            self.checkpoint_hash = self.step.model.hash
        except OSError as error:
            reason = os_error_text(error)
            self.listener(Message(f"The embedding will not name its checkpoint's hash, because that file cannot be read: {reason}."))

    def train(self, should_stop: Callable[[], bool]) -> Embedding:
        """Train to the end; what was learned is written whatever happens."""
        self._save()  # a file that cannot be written is reported now, not after hours
        outcome = ""
        failure: TextualInversionError | None = None
        try:
            outcome = self._loop(should_stop)
        except TrainingError as error:
            failure = error
        except BaseException:
            self._save_at_end()
            raise
        try:
            self._save_at_end()
        except EmbeddingError as error:
            failure = type(failure)(f"{failure} {error}", path=error.path, setting=failure.setting) if failure else error
        else:
            if failure is None:  # after a failure the moments belong to vectors that were not kept
                self._save_optimizer()
        self.listener(Stopped(self.done, str(failure or outcome), str(self.file.path), failed=failure is not None))
        if failure:
            raise failure
        return self.embedding

    def _loop(self, should_stop: Callable[[], bool]) -> str:
        """Do the steps; returns why they ended: `finished` or `interrupted`."""
        config, step, monitor = self.config, self.step, self.monitor
        rates = LearningRateSchedule(config.learning_rate)
        bounds = LearningRateSchedule(config.clip_schedule if config.clip_mode != "off" else 1.0)
        saved_at = monitor.start()
        while self.done < config.steps:
            if should_stop():
                self._report_steps()
                return "interrupted"
            number, rate = self.done + 1, rates.at(self.done + 1)
            before = step.vectors.detach().clone()
            try:
                loss, gradient = step.run(self.batches.next, rate, bounds.at(number))
            except torch.cuda.OutOfMemoryError as error:
                advice = f"use a smaller batch size (it is {config.batch_size}) or smaller pictures"
                raise TrainingError(f"The device ran out of memory at step {number}; {advice}.", setting="batch_size") from error
            norm = torch.linalg.vector_norm(step.vectors.detach(), dim=1).mean()
            monitor.add(Measurement(number, rate, before, loss, gradient, norm))
            self.done = number

            copy_is_due, preview_is_due = _is_due(config.copy_every, number), _is_due(config.preview_every, number)
            if monitor.is_full or number == config.steps or copy_is_due or preview_is_due:
                self._report_steps()
            begun = time.monotonic()
            if copy_is_due:
                self.recorder.copy(self._current(), number)
            if preview_is_due:
                self.recorder.preview(self._current(), number)
            if begun - saved_at > SAVE_SECONDS:
                self._report_steps()
                try:
                    self._save()
                except EmbeddingError as error:  # the cause may be temporary, and the vectors are still in memory
                    self.listener(Message(str(error)))
                saved_at = time.monotonic()
            monitor.paused += time.monotonic() - begun  # files do not count as training
        return "finished"

    def _report_steps(self) -> None:
        """Read the losses off the device and report them; restore the last good vectors when training cannot continue."""
        events, problem = self.monitor.read(self.done)
        self.recorder.steps(events)
        for event in events:
            self.listener(event)
        if problem:
            self.done, vectors = self.monitor.good
            with torch.no_grad():
                self.step.vectors.copy_(vectors)
            raise problem

    def _current(self) -> Embedding:
        return self._embedding(self.done, self.step.vectors.detach())

    def _embedding(self, step: int, learned: torch.Tensor) -> Embedding:
        model = self.step.model
        vectors = {**self.embedding.vectors, model.conditioner.encoder_name: learned}
        return self.embedding.with_vectors(vectors, step=step, checkpoint_name=model.name, checkpoint_hash=self.checkpoint_hash)

    def _save(self) -> None:
        self.embedding = self._current()
        self.file.write(self.embedding)
        self._save_optimizer()

    def _save_optimizer(self) -> None:
        if not self.config.save_optimizer:
            return
        try:
            save_optimizer(optimizer_file(self.file.path), self.step.optimizer)
        except EmbeddingError as error:  # the vectors are what counts
            self.listener(Message(str(error)))

    def _save_at_end(self) -> None:
        """Write the last good vectors, elsewhere if need be.

        Raises:
            EmbeddingError: the file could not be written; the sentence says where the vectors are.
        """
        try:
            current = self._current()
            is_good = all(bool(torch.isfinite(vectors).all()) for vectors in current.vectors.values())
        except RuntimeError:  # the device is lost, with all vectors after the last reading
            is_good = False
        self.embedding = current if is_good else self._embedding(*self.monitor.good)
        self.done = self.embedding.provenance.step or 0
        self.file.write_or_rescue(self.embedding, self.recorder.folder)


def _is_due(every: int, number: int) -> bool:
    return every > 0 and number % every == 0


class Measurement(NamedTuple):
    """A step whose numbers are still on the device.

    Attributes:
        number: of the step.
        learning_rate: of the step.
        before: the vectors before the step, [n, d].
        loss: scalar.
        gradient: norm of the gradient, scalar.
        vector_norm: mean norm of the vectors after the step, scalar.
    """

    number: int
    learning_rate: float
    before: torch.Tensor
    loss: torch.Tensor
    gradient: torch.Tensor
    vector_norm: torch.Tensor


class StepMonitor:
    """Reads the numbers of several steps at once, so that the device never waits for the processor, and judges them.

    Args:
        step: the step that is monitored.
        first_step: steps done before this run.
        last_step: the step at which the run ends.

    Attributes:
        good: (step, vectors [n, d]) of the last finite loss; on the CPU, so that they survive the loss of the device.
        paused: seconds since the start that do not count as training.
    """

    def __init__(self, step: TrainingStep, first_step: int, last_step: int) -> None:
        self.step, self.first_step, self.last_step = step, first_step, last_step
        self.good = (first_step, step.vectors.detach().cpu().clone())
        self.paused = 0.0
        self._unread: list[Measurement] = []
        self._overflows = 0

    def start(self) -> float:
        """Start the clock; returns the time."""
        self._started = time.monotonic()
        return self._started

    def add(self, measurement: Measurement) -> None:
        """Keep the numbers of a step until they are read."""
        self._unread.append(measurement)

    @property
    def is_full(self) -> bool:
        """Whether it is time to read."""
        return len(self._unread) >= _READ_EVERY.get(self.step.vectors.device.type, _READ_EVERY_ELSEWHERE)

    def read(self, done: int) -> tuple[list[StepDone], TrainingError | None]:
        """Wait for the device and read what it has computed.

        Args:
            done: steps done so far.

        Returns:
            The steps since the last reading, and the reason why training cannot go on; steps from that one on are left out.
        """
        if not self._unread:
            return [], None
        rows, self._unread = self._unread, []
        numbers = torch.stack([torch.stack(row[3:]) for row in rows]).tolist()
        rate = (done - self.first_step) / max(1e-9, time.monotonic() - self._started - self.paused)
        left = (self.last_step - done) / rate
        events, good, problem = [], None, None
        for row, (loss, gradient, vector_norm) in zip(rows, numbers):
            if math.isfinite(loss):
                good = row
            problem = self._problem(row.number, loss, gradient)
            if problem:
                break
            events.append(StepDone(row.number, loss, row.learning_rate, vector_norm, rate, left))
        if good:
            self.good = (good.number - 1, good.before.cpu())
        return events, problem

    def _problem(self, number: int, loss: float, gradient: float) -> TrainingError | None:
        hint = "a lower learning rate" + (" or precision fp32" if self.step.model.dtype != torch.float32 else "")
        if not math.isfinite(loss):
            sentence = f"The loss became {loss} at step {number}; the last good vectors are kept. Try {hint}."
            return NonFiniteLossError(sentence, setting="learning_rate")
        if gradient == 0.0:
            advice = "check that the template holds [name], or try precision fp32"
            sentence = f"The gradient is exactly zero at step {number}, so nothing would be learned; {advice}."
            return ZeroGradientError(sentence, setting="template")
        self._overflows = 0 if math.isfinite(gradient) else self._overflows + 1
        if self._overflows < _MOST_OVERFLOWS:
            return None
        sentence = f"The gradient was not finite in the {self._overflows} steps up to {number}, so nothing is learned; try {hint}."
        return TrainingError(sentence, setting="learning_rate")
