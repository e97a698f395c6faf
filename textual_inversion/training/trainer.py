"""The training run from top to bottom: set up, step until the end, an interrupt or a reason to stop, and write what was learned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from textual_inversion.diffusion import kernels
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.embedding import Embedding
from textual_inversion.errors import TrainingError
from textual_inversion.settings.training import EVALUATION_ROWS, TrainingConfig, check_trained_together
from textual_inversion.training.embedding_file import find_embedding
from textual_inversion.training.evaluation import Evaluation
from textual_inversion.training.events import Event, Message
from textual_inversion.training.journal import recover
from textual_inversion.training.memory import MemoryPlan, fitted, plan_encoding, plan_memory, unet_aside
from textual_inversion.training.prepared import Prepared
from textual_inversion.training.run import Run
from textual_inversion.training.step import TrainingStep
from textual_inversion.training.stepper import Plan, Stepper

_READ_EVERY = {"cpu": 1}  # device -> steps between two readings of the losses; on all other devices:
_READ_EVERY_ELSEWHERE = 10


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
        config: the settings; `device`, `precision` and `prediction_type` are not used here, because the model is already loaded.
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
        configs: one for each embedding; all have the same clip skip, gradient accumulation steps, checkpointing, precision and device.
        model, embeddings_dir, should_stop: as for `train`.
        listener: receives the name of the embedding and the event.

    Returns:
        The embeddings as written, in the order of `configs`.

    Raises:
        ConfigError: a name is there twice, or the settings above differ.
        TextualInversionError: as for `train`. A fault that shows before the first step ends all. Of the faults that show later, the
            first is raised when all others are done.
    """
    check_trained_together(configs)
    found = [find_embedding(Path(embeddings_dir), config.name) for config in configs]
    prepared = [_recovered(each, partial(listener, each.name), path, embedding) for each, (path, embedding) in zip(configs, found)]
    rows = 0
    for each in prepared:
        each.read(model, rows)
        rows += len(each.table.vectors)
    for note in model.notes:
        prepared[0].listener(Message(note))
    _prepare_kernels(model, prepared[0].listener)
    plan = _fit(prepared, model)
    encoding = plan_encoding(model, _largest(prepared))
    with unet_aside(model, encoding):
        is_encoded = all(each.encode(model, should_stop, encoding) for each in prepared)
    if not is_encoded:
        for each in prepared:
            each.report_interrupt()
        return [each.embedding for each in prepared]
    with fitted(model, plan) as release:
        for each in prepared:
            each.find_words(model, should_stop)
        step = TrainingStep(model, [each.start(model) for each in prepared], [each.config for each in prepared])
        stepper = Stepper(step, [each.batches for each in prepared], report=lambda sentence: prepared[0].listener(Message(sentence)))
        runs = []
        for number, each in enumerate(prepared):
            runs.append(Run(each, step.trained[number], model, _evaluation(each, step, number, stepper), should_stop))
        release.callback(stepper.graphs.clear)
        return _Loop(runs, stepper, should_stop).run()


def _recovered(config: TrainingConfig, listener: Callable[[Event], None], path: Path, embedding: Embedding) -> Prepared:
    """The embedding with what a killed run had learned of it."""
    embedding, sentence = recover(path, embedding)
    if sentence:
        listener(Message(sentence))
    return Prepared(config, listener, path, embedding)


def _evaluation(prepared: Prepared, step: TrainingStep, number: int, stepper: Stepper) -> Evaluation | None:
    """What measures an embedding on fixed batches; None where the settings want no evaluation."""
    every = prepared.config.evaluation_interval
    return Evaluation(step, number, prepared.batches.fixed(EVALUATION_ROWS), stepper.graphs) if every else None


def _prepare_kernels(model: StableDiffusion, listener: Callable[[Event], None]) -> None:
    """Test the fused kernels where there may be some; say so, because the first time they are compiled."""
    if model.device.type != "cuda":
        return
    listener(Message("Preparing the device's kernels; the first time takes a minute"))
    if reason := kernels.status(model.device):
        listener(Message(f"{reason} Training goes on without them, somewhat slower."))


def _largest(prepared: Sequence[Prepared]) -> tuple[int, int]:
    """Size (width, height) of the largest pictures."""
    return max((size for each in prepared for size in each.listed.sizes()), key=lambda size: size[0] * size[1])


def _fit(prepared: Sequence[Prepared], model: StableDiffusion) -> MemoryPlan:
    """Choose how the run fits into the device's memory, and say what was changed for it."""
    first = prepared[0]
    size = _largest(prepared)
    chunks = max(each.prompts.chunks for each in prepared)
    batch = sum(each.config.batch_size for each in prepared if size in each.listed.sizes())  # one pass has pictures of one size
    parts = 1024 // first.config.gradient_accumulation_steps if len(prepared) == 1 else 1
    plan, sentence = plan_memory(first.config.gradient_checkpointing, model, size, chunks, batch, most_parts=parts)
    if sentence:
        first.listener(Message(sentence))
    if plan.batch_size < batch:
        first.config = plan.applied_to(first.config)
    return plan


class _Loop:
    """Does the steps of all runs until each has ended.

    Steps are done in blocks. The processor starts the steps of a block, plans the next block while the device computes, and only then
    waits for the device to read the losses.
    """

    def __init__(self, runs: Sequence[Run], stepper: Stepper, should_stop: Callable[[], bool]) -> None:
        self.runs, self.stepper, self.should_stop = runs, stepper, should_stop
        most = _READ_EVERY.get(stepper.device.type, _READ_EVERY_ELSEWHERE)
        self.most_steps = min(most, stepper.most_steps)  # of a block
        self.steps = 1  # of the next block, so that it lasts about a second: for so long nothing is saved, reported or interrupted

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
            begun = time.monotonic()
            self.stepper.load(plan)
            done, failure = self._do(plan)
            goes_on = done == len(plan)
            following = self._plan() if goes_on else None
            for number, run in self._in(plan):
                run.block_done([step[number] for step in plan.rates[:done]])
                if not (goes_on or run.ended):
                    run.end("interrupted", failure)
            if all(run.ended for run in self.runs):
                return
            if goes_on and any(run.rates_changed for run in self.runs):
                following = self._plan()
            self.steps = max(1, min(self.most_steps, int(len(plan) / max(1e-3, time.monotonic() - begun))))
            plan = following

    def _in(self, plan: Plan) -> list[tuple[int, Run]]:
        """The runs of a block that have not ended."""
        return [(number, self.runs[number]) for number in plan.rates[0] if not self.runs[number].ended]

    def _plan(self) -> Plan | None:
        """The next block: as many steps as may pass until a run needs the processor; None when all runs have ended."""
        active = {number: run for number, run in enumerate(self.runs) if not run.ended and run.done < run.last_step}
        if not active:
            return None
        for run in active.values():
            run.rates_changed = False
        count = min(self.steps, *(run.free_steps for run in active.values()))
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
