"""The training run from top to bottom: set up, step until the end, an interrupt or a reason to stop, and write what was learned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

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
from textual_inversion.settings.schema import setting_of
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.text import counted
from textual_inversion.training.data.batches import BatchMaker, PromptMaker
from textual_inversion.training.data.encoding import InterruptedEncodingError, encode_pictures, list_pictures
from textual_inversion.training.data.training_set import TrainingSet
from textual_inversion.training.embedding_file import GuardedFile, find_embedding
from textual_inversion.training.events import Event, Message, Started, StepDone, Stopped
from textual_inversion.training.memory import MemoryPlan, fitted, plan_memory
from textual_inversion.training.methods import start_at_word_length
from textual_inversion.training.recorder import Recorder
from textual_inversion.training.state import load_optimizer, optimizer_file, save_optimizer
from textual_inversion.training.step import Reading, TrainedVectors, TrainingStep
from textual_inversion.training.stepper import Plan, Rates, Stepper

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
    (embedding,) = train_together([config], model, embeddings_dir, listener=lambda _, event: listener(event), should_stop=should_stop)
    return embedding


def train_together(
    configs: Sequence[TrainingConfig],
    model: StableDiffusion,
    embeddings_dir: str | Path,
    *,
    listener: Callable[[str, Event], None] = lambda name, event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Embedding]:
    """Train several embeddings in the same steps, which keeps a large card busy. Each learns as in a run of its own.

    Each has its own pictures, template, schedule, batch size, log folder and end. Where one fails, the others go on.

    Args:
        configs: one for each embedding; all have the same clip skip and number of gradient accumulation steps.
        model, embeddings_dir, should_stop: as for `train`.
        listener: receives the name of the embedding and the event.

    Returns:
        The embeddings as written, in the order of `configs`.

    Raises:
        ConfigError: a name is there twice, or the settings above differ.
        TextualInversionError: as for `train`. A fault that shows before the first step ends all. Of the faults that show later, the
            first is raised when all others are done.
    """
    _check_together(configs)
    found = [_find(config, Path(embeddings_dir)) for config in configs]
    prepared = [_Prepared(each, partial(listener, each.name), path, embedding) for each, (path, embedding) in zip(configs, found)]
    rows = 0
    for each in prepared:
        each.read(model, rows)
        rows += len(each.table.vectors)
    plan = _fit(prepared, model)
    if not all(each.encode(model, should_stop) for each in prepared):
        return [each.embedding for each in prepared]
    with fitted(model, plan):
        step = TrainingStep(model, [each.start(model) for each in prepared], [each.config for each in prepared])
        runs = [Run(each, step.trained[number], model) for number, each in enumerate(prepared)]
        stepper = Stepper(step, [each.batches for each in prepared], report=lambda sentence: runs[0].listener(Message(sentence)))
        return _Loop(runs, stepper, should_stop).run()


def _fit(prepared: Sequence[_Prepared], model: StableDiffusion) -> MemoryPlan:
    """Choose how the run fits into the device's memory, and say what was changed for it."""
    first = prepared[0]
    size = max((size for each in prepared for size in each.listed.sizes()), key=lambda size: size[0] * size[1])
    chunks = max(each.prompts.chunks for each in prepared)
    batch = sum(each.config.batch_size for each in prepared)
    plan, sentence = plan_memory(first.config.gradient_checkpointing, model, size, chunks, batch, may_split=len(prepared) == 1)
    if sentence:
        first.listener(Message(sentence))
    if plan.batch_size < batch:
        first.config = plan.applied_to(first.config)
    return plan


def _check_together(configs: Sequence[TrainingConfig]) -> None:
    names = [config.name for config in configs]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ConfigError(f"{twice!r} is there twice; each embedding can be trained once in a run.", setting="name")
    for setting in ("clip_skip", "gradient_accumulation_steps"):
        values = sorted({getattr(config, setting) for config in configs})
        if len(values) > 1:
            label = setting_of(TrainingConfig, setting).label
            sentence = f"“{label}” is {values[0]} for one embedding and {values[-1]} for another; give all the same."
            raise ConfigError(sentence, setting=setting)


def _find(config: TrainingConfig, folder: Path) -> tuple[Path, Embedding]:
    """The embedding's file and what it holds.

    Raises:
        ConfigError: it has had all its steps already.
    """
    path, embedding = find_embedding(folder, config.name)
    first_step = embedding.provenance.step or 0
    if first_step >= config.steps:
        trained = counted(first_step, "step")
        sentence = f"{config.name!r} has been trained for {trained}; set steps above that to go on (they are {config.steps})."
        raise ConfigError(sentence, setting="steps")
    return path, embedding


@dataclass
class _Prepared:
    """An embedding and, once prepared, the data to train it on."""

    config: TrainingConfig
    listener: Callable[[Event], None]
    path: Path
    embedding: Embedding
    table: VectorTable = field(init=False)
    lines: list[str] = field(init=False)
    listed: TrainingSet = field(init=False)
    prompts: PromptMaker = field(init=False)
    batches: BatchMaker = field(init=False)

    def read(self, model: StableDiffusion, first_row: int) -> None:
        """Read the template and list the pictures.

        Args:
            first_row: of the embedding's vectors, among those of all embeddings in the run.
        """
        config, conditioner = self.config, model.conditioner
        self.lines = read_template(config.template or template_folder() / DEFAULT_TEMPLATE)
        named = {config.name: self.embedding}
        self.table = VectorTable.of(named, conditioner.encoder_name, conditioner.width, model.device, first_row=first_row)
        self.listed = list_pictures(config)
        self.prompts = PromptMaker(config, self.lines, [picture.caption for picture in self.listed.pictures], conditioner, self.table)

    def encode(self, model: StableDiffusion, should_stop: Callable[[], bool]) -> bool:
        """Encode the pictures; False where that was interrupted."""
        config, listed, prompts = self.config, self.listed, self.prompts
        first_step = self.embedding.provenance.step or 0
        try:
            data = encode_pictures(config, model, listed, self.listener, should_stop)
        except InterruptedEncodingError:
            self.listener(Started(config.name, first_step, config.steps, len(listed.pictures), listed.skipped))
            self.listener(Stopped(first_step, "interrupted", str(self.path)))
            return False
        self.listener(Started(config.name, first_step, config.steps, data.pictures, data.skipped))
        self.batches = BatchMaker(config, data.buckets, prompts, noise_device=model.device, repeats=data.repeats, first_step=first_step)
        data.buckets.clear()  # the batches have taken over what they need; with many pictures this frees gigabytes
        return True

    def start(self, model: StableDiffusion) -> torch.Tensor:
        """The vectors [n, d] that training starts from."""
        vectors = self.table.vectors
        if self.config.method != "classic":
            return start_at_word_length(vectors, model.word_norm, self.config, is_new=not self.embedding.provenance.step)
        return vectors


class _Loop:
    """Does the steps of all runs until each has ended.

    Steps are done in blocks. The processor starts the steps of a block, plans the next block while the device computes, and only then
    waits for the device to read the losses.
    """

    def __init__(self, runs: Sequence[Run], stepper: Stepper, should_stop: Callable[[], bool]) -> None:
        self.runs, self.stepper, self.should_stop = runs, stepper, should_stop
        device = stepper.device.type
        self.most_steps = _READ_EVERY.get(device, _READ_EVERY_ELSEWHERE)  # of a block

    def run(self) -> list[Embedding]:
        """Train to the end; what was learned is written whatever happens."""
        for run in self.runs:
            run.begin()  # a file that cannot be written is reported now, not after hours
        try:
            self._steps()
        except BaseException:
            with ExitStack() as every:  # the others are saved where one cannot be
                for run in self.runs:
                    every.callback(run.rescue)
            raise
        if failure := next((run.failure for run in self.runs if run.failure), None):
            raise failure
        return [run.embedding for run in self.runs]

    def _steps(self) -> None:
        plan = self._plan()
        while plan:
            self.stepper.load(plan)
            done, failure = self._do(plan)
            goes_on = done == len(plan)
            following = self._plan() if goes_on else None
            for number, run in self._in(plan):
                run.block_done([step[number] for step in plan.rates[:done]])
                if not (goes_on or run.ended):
                    run.end("interrupted", failure)
            plan = following

    def _in(self, plan: Plan) -> list[tuple[int, Run]]:
        """The runs of a block that have not ended."""
        return [(number, self.runs[number]) for number in plan.rates[0] if not self.runs[number].ended]

    def _plan(self) -> Plan | None:
        """The next block: as many steps as may pass until a run needs the processor; None when all runs have ended."""
        active = {number: run for number, run in enumerate(self.runs) if not run.ended and run.done < run.config.steps}
        if not active:
            return None
        count = min(self.most_steps, *(run.free_steps for run in active.values()))
        return self.stepper.plan([{number: run.rates(step) for number, run in active.items()} for step in range(1, count + 1)])

    def _do(self, plan: Plan) -> tuple[int, TrainingError | None]:
        """Start the steps of a block; returns how many were started before somebody asked to stop, or before a failure."""
        for index, active in enumerate(plan.rates):
            if self.should_stop():
                return index, None
            try:
                self.stepper.run(index)
            except torch.cuda.OutOfMemoryError:
                run = self.runs[next(iter(active))]
                advice = f"use a smaller batch size (it is {run.config.batch_size}) or smaller pictures"
                sentence = f"The device ran out of memory at step {run.done + 1}; {advice}."
                return index, TrainingError(sentence, setting="batch_size")
            for number in active:
                self.runs[number].done += 1
        return len(plan), None


class Run:
    """The run of one embedding: what it reports and writes.

    Attributes:
        file: the embedding's file.
        embedding: the embedding as it was last written, at first as it was read.
        done: steps, those before the run included; they are started, but the device may still be computing them.
        ended: whether it takes part no more.
        failure: why it failed.
    """

    def __init__(self, prepared: _Prepared, trained: TrainedVectors, model: StableDiffusion) -> None:
        config, self.listener, self.embedding = prepared.config, prepared.listener, prepared.embedding
        self.config, self.trained, self.model = config, trained, model
        self.file = GuardedFile(prepared.path, prepared.embedding)
        self.done = self.embedding.provenance.step or 0
        self.ended = self._told_of_hash = False
        self.failure: TextualInversionError | None = None
        self.monitor = StepMonitor(trained, self.done, config.steps, "" if model.dtype == torch.float32 else " or precision fp32")
        self._rates = config.rates(self.done)
        self._bounds = LearningRateSchedule(config.clip_schedule if config.clip_mode != "off" else 1.0)
        if config.save_optimizer and (note := load_optimizer(optimizer_file(prepared.path), trained.optimizer)):
            self.listener(Message(note))
        self.recorder = Recorder(config, model, self.listener, prepared.lines, prepared.batches.prompts.captions[0])
        # reading a large checkpoint takes seconds, which the first step need not wait for
        self._hashing = ThreadPoolExecutor(1, "textual-inversion-hash")
        self._hash = self._hashing.submit(lambda: model.hash)
        self._hashing.shutdown(wait=False)

    @property
    def free_steps(self) -> int:
        """Steps until the run ends, or a copy or a preview is due."""
        stops = [self.config.steps - self.done]
        stops += [every - self.done % every for every in (self.config.copy_every, self.config.preview_every) if every]
        return min(stops)

    def rates(self, ahead: int) -> Rates:
        """The rates of the step that is `ahead` of the last one done."""
        number = self.done + ahead
        return Rates(self._rates.at(number), self._bounds.at(number))

    def begin(self) -> None:
        """Write the file for the first time, and start the clock."""
        self._save()
        self._saved_at = self.monitor.start()

    def block_done(self, rates: Sequence[Rates]) -> None:
        """Report the last steps, whose rates these are, and write what is due; the run ends when it is finished or cannot continue."""
        if problem := self._report(rates):
            return self.end(failure=problem)
        begun = time.monotonic()
        if rates and _is_due(self.config.copy_every, self.done):
            self.recorder.copy(self._current(), self.done)
        if rates and _is_due(self.config.preview_every, self.done):
            self.recorder.preview(self._current(), self.done)
        if begun - self._saved_at > SAVE_SECONDS:
            try:
                self._save()
            except EmbeddingError as error:  # the cause may be temporary, and the vectors are still in memory
                self.listener(Message(str(error)))
            self._saved_at = time.monotonic()
        self.monitor.paused += time.monotonic() - begun  # files do not count as training
        if self.done == self.config.steps:
            self.end("finished")

    def _report(self, rates: Sequence[Rates]) -> TrainingError | None:
        """Report the last steps; the reason why training cannot continue, with the last good vectors restored."""
        events, problem = self.monitor.read(self.done, [each.learning_rate for each in rates])
        self.recorder.steps(events)
        for event in events:
            self.listener(event)
        if problem:
            self.done, vectors = self.monitor.good
            self.trained.vectors.copy_(vectors)
        return problem

    def end(self, outcome: str = "", failure: TextualInversionError | None = None) -> None:
        """Write the vectors for the last time and say why the run ended; an error is kept in `failure`."""
        self.ended = True
        try:
            self._save_at_end()
        except EmbeddingError as error:
            failure = type(failure)(f"{failure} {error}", path=error.path, setting=failure.setting) if failure else error
        else:
            if failure is None:  # after a failure the moments belong to vectors that were not kept
                self._save_optimizer()
        self.recorder.close()
        self.failure = failure
        self.listener(Stopped(self.done, str(failure or outcome), str(self.file.path), failed=failure is not None))

    def rescue(self) -> None:
        """Write the vectors after an error that nobody expected."""
        if not self.ended:
            self.ended = True
            self._save_at_end()

    def _current(self) -> Embedding:
        return self._embedding(self.done, self.trained.vectors)

    def _embedding(self, step: int, learned: torch.Tensor) -> Embedding:
        """An embedding of its own: the vectors may go on learning."""
        checkpoint_hash = self._checkpoint_hash()
        vectors = {**self.embedding.vectors, self.model.conditioner.encoder_name: learned.detach().clone()}
        return self.embedding.with_vectors(vectors, step=step, checkpoint_name=self.model.name, checkpoint_hash=checkpoint_hash)

    def _checkpoint_hash(self) -> str | None:
        """The checkpoint's hash; None while it is still being computed, unless the run has ended, and where the file cannot be read."""
        if not (self.ended or self._hash.done()):
            return None
        try:
            return self._hash.result()
        except OSError as error:
            if not self._told_of_hash:
                self._told_of_hash = True
                reason = os_error_text(error)
                self.listener(Message(f"The embedding will not name its checkpoint's hash, because that file cannot be read: {reason}."))
            return None

    def _save(self) -> None:
        self.embedding = self._current()
        self.file.write(self.embedding)
        self._save_optimizer()

    def _save_optimizer(self) -> None:
        if not self.config.save_optimizer:
            return
        try:
            save_optimizer(optimizer_file(self.file.path), self.trained.optimizer)
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


class StepMonitor:
    """Reads the numbers of several steps at once and judges them.

    Args:
        trained: the vectors whose steps are read.
        first_step: steps done before this run.
        last_step: the step at which the run ends.
        advice: what to try beside a lower learning rate.

    Attributes:
        good: (step, vectors [n, d]) of the last finite loss; on the CPU, so that they survive the loss of the device.
        paused: seconds since the start that do not count as training.
    """

    def __init__(self, trained: TrainedVectors, first_step: int, last_step: int, advice: str = "") -> None:
        self.trained, self.first_step, self.last_step = trained, first_step, last_step
        self.hint = f"a lower learning rate{advice}"
        self.good = (first_step, trained.vectors.to("cpu", copy=True))
        self.paused = 0.0
        self._overflows = 0

    def start(self) -> float:
        """Start the clock; returns the time."""
        self._started = time.monotonic()
        return self._started

    def read(self, done: int, learning_rates: Sequence[float]) -> tuple[list[StepDone], TrainingError | None]:
        """Wait for the device and read what it has computed since the last reading.

        Args:
            done: steps done so far.
            learning_rates: of the steps since the last reading; the last one is step `done`.

        Returns:
            These steps, and the reason why training cannot go on; steps from that one on are left out.
        """
        if not learning_rates:
            return [], None
        first = done - len(learning_rates) + 1
        readings = self.trained.read(len(learning_rates))
        rate = (done - self.first_step) / max(1e-9, time.monotonic() - self._started - self.paused)
        left = (self.last_step - done) / rate
        events, good, problem = [], None, None
        for slot, (reading, learning_rate) in enumerate(zip(readings, learning_rates)):
            if math.isfinite(reading.loss):
                good = slot
            problem = self._problem(first + slot, reading)
            if problem:
                break
            events.append(StepDone(first + slot, reading.loss, learning_rate, reading.vector_norm, rate, left))
        if good is not None:
            self.good = (first + good - 1, self.trained.before(good))
        return events, problem

    def _problem(self, number: int, reading: Reading) -> TrainingError | None:
        loss, gradient = reading.loss, reading.gradient
        if not math.isfinite(loss):
            sentence = f"The loss became {loss} at step {number}; the last good vectors are kept. Try {self.hint}."
            return NonFiniteLossError(sentence, setting="learning_rate")
        if gradient == 0.0:
            advice = "check that the template holds [name], or try precision fp32"
            sentence = f"The gradient is exactly zero at step {number}, so nothing would be learned; {advice}."
            return ZeroGradientError(sentence, setting="template")
        self._overflows = 0 if math.isfinite(gradient) else self._overflows + 1
        if self._overflows < _MOST_OVERFLOWS:
            return None
        sentence = f"The gradient was not finite in the {self._overflows} steps up to {number}, so nothing is learned; try {self.hint}."
        return TrainingError(sentence, setting="learning_rate")
