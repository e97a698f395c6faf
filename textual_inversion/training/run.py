"""The run of one embedding: what it reports and writes while it learns, and how it ends."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from textual_inversion.diffusion.model import StableDiffusion, is_full_size
from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError, NonFiniteLossError, TextualInversionError, TrainingError, ZeroGradientError
from textual_inversion.files import os_error_text
from textual_inversion.last_run import LastRun, last_run_file, read_last_run
from textual_inversion.settings.schedule import CoolDown, LearningRateSchedule, Schedule
from textual_inversion.settings.training import BOTH, TrainingConfig
from textual_inversion.training.better_words import BetterWords
from textual_inversion.training.evaluation import Curve, Evaluation, cool_down_steps
from textual_inversion.training.events import Busy, Evaluated, Message, StepDone, Stopped
from textual_inversion.training.journal import Journal, Note, base_of
from textual_inversion.training.judge import Judge
from textual_inversion.training.prepared import Prepared
from textual_inversion.training.recorder import Recorder
from textual_inversion.training.search_plan import search_budget, search_rows, search_steps
from textual_inversion.training.state import load_optimizer, optimizer_file, save_optimizer
from textual_inversion.training.step import Reading, TrainedVectors
from textual_inversion.training.stepper import Rates
from textual_inversion.training.verdict import LEAST_FALL_OF_TINY, Measured
from textual_inversion.training.word_fit import Budget

_AVERAGED = 3  # a run's last third is averaged
_LEAST_AVERAGED = 10  # steps
SAVE_SECONDS = 60.0  # time between two saves: the most work that a loss of power can lose; a crash loses less, thanks to the journal
_MOST_OVERFLOWS = 20  # in a row; the fp16 loss scale falls from its highest value to 1 in 16


class Run:
    """The run of one embedding: what it reports and writes.

    Attributes:
        file: the embedding's file.
        embedding: the embedding as it was last written, at first as it was read.
        done: steps, those before the run included; they are started, but the device may still be computing them.
        ended: whether it takes part no more.
        rates_changed: whether steps that are planned already have other rates than they should.
        failure: why it failed.
    """

    def __init__(
        self,
        prepared: Prepared,
        trained: TrainedVectors,
        model: StableDiffusion,
        evaluation: Evaluation | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        config, self.listener, self.embedding = prepared.config, prepared.listener, prepared.embedding
        self.config, self.trained, self.model = config, trained, model
        self.file, self._asked = prepared.file, prepared.asked
        self.done, self.last_step = self.embedding.provenance.step or 0, config.total_steps
        self._first, self._earlier = self.done, LastRun()  # the step before the run, and what was kept about the run before
        self.evaluation, self.curve, self._best = evaluation, Curve(), trained.vectors.clone()
        self._best_moments = trained.optimizer.state_dict()
        self._tail = TailAverage(self.last_step - (self.last_step - self.done) // _AVERAGED)
        self.rates_changed = False
        self.ended = self._told_of_hash = False
        self.failure: TextualInversionError | None = None
        self.monitor = StepMonitor(trained, self.done, config.total_steps, "" if model.dtype == torch.float32 else " or precision fp32")
        self.monitor.preview_every = config.preview_every
        learns_all = config.train_encoders == BOTH or len(model.widths) == 1
        self._search_steps = search_steps(config, self.embedding.provenance.step) if learns_all else ()
        self._new_fit = lambda: prepared.word_fit(model, search_rows(config), Budget(search_budget(config), should_stop))
        self._rates: Schedule = config.rates(self.done, model.words[0].scale)
        self._bounds = LearningRateSchedule(config.clip_schedule if config.clip_mode != "off" else 1.0)
        if config.save_optimizer and (note := load_optimizer(optimizer_file(prepared.path), trained.optimizer)):
            self.listener(Message(note))
        self.journal, self._base = Journal(prepared.path, lambda sentence: self.listener(Message(sentence))), ""
        captions = prepared.batches.prompts.captions
        self.recorder = Recorder(config, model, self.listener, prepared.lines, captions[0], self.done)
        least_fall = 0.0 if is_full_size(model.file) else LEAST_FALL_OF_TINY
        known = Measured(self.done, self.done, self.last_step, pictures=len(captions), described=any(captions), least_fall=least_fall)
        self.judge = Judge(known, trained, model)
        # reading a large checkpoint takes seconds, which the first step need not wait for
        self._hashing = ThreadPoolExecutor(1, "textual-inversion-hash")
        self._hash = self._hashing.submit(lambda: model.hash)
        self._hashing.shutdown(wait=False)

    @property
    def free_steps(self) -> int:
        """Steps until the run ends, or a copy, a preview or an evaluation is due."""
        stops = [self.last_step - self.done]
        stops += [step - self.done for step in self._search_steps if step > self.done]
        intervals = (self.config.copy_every, self.config.preview_every, self.config.evaluation_interval)
        stops += [every - self.done % every for every in intervals if every]
        return min(stops)

    def rates(self, ahead: int) -> Rates:
        """The rates of the step that is `ahead` of the last one done."""
        number = self.done + ahead
        return Rates(self._rates.at(number), self._bounds.at(number))

    def begin(self) -> None:
        """Write the file for the first time, measure and draw where training starts, and start the clock."""
        # new vectors begin at the length of words: the copy of step 0 holds what its preview shows
        before = self.recorder.copy(self.embedding if self.done else self._current(), self.done)
        self._earlier = read_last_run(self.file.path)
        self._save()
        level, verdict = self._earlier.judged_at(self.done) if before else (self._earlier.before_level, self._earlier.before_verdict)
        kept = str(before) if before else self._earlier.before
        settings = _with_whole_paths(self._asked)
        self._last_run = LastRun(settings, self.done, before=kept, before_level=level, before_verdict=verdict)
        self._keep_last_run()
        self._evaluate()
        if self.config.preview_every:
            self._preview()
        self._saved_at = self.monitor.start()

    def block_done(self, rates: Sequence[Rates]) -> None:
        """Report the last steps, whose rates these are, and write what is due; the run ends when it is finished or cannot continue."""
        if problem := self._report(rates):
            return self.end(failure=problem)
        begun = time.monotonic()
        if rates and self.journal.is_due():
            self._note()
        if rates and self.done in self._search_steps:
            self._search_words()
        if self.done >= self.last_step:
            self._take_average()
        if rates and (_is_due(self.config.evaluation_interval, self.done) or self.done == self.last_step):
            self._evaluate()
        if self.done >= self.last_step:
            self._keep_best()
        if rates and _is_due(self.config.copy_every, self.done):
            self.recorder.copy(self._current(), self.done)
        if rates and (_is_due(self.config.preview_every, self.done) or (self.config.preview_every and self.done == self.last_step)):
            self._preview()
        if begun - self._saved_at > SAVE_SECONDS:
            try:
                self._save()
            except EmbeddingError as error:  # the cause may be temporary, and the vectors are still in memory
                self.listener(Message(str(error)))
            self._saved_at = time.monotonic()
        self.monitor.paused += time.monotonic() - begun  # files do not count as training
        if self.done >= self.last_step:
            self.end("finished")
        elif self.config.early_stop and self.config.method != "classic" and self.curve.is_flat and not self._is_cooling:
            self._cool_down()

    def _preview(self) -> None:
        """Draw what has been learned so far, and keep a copy that can be gone back to."""
        begun = time.monotonic()
        self.listener(Busy(f"Drawing the preview of step {self.done}"))
        current = self._current()
        self.recorder.copy(current, self.done)
        self.recorder.preview(current, self.done)
        self.monitor.seconds_of_a_preview = time.monotonic() - begun

    def _keep_last_run(self) -> None:
        """Keep the settings and the verdict beside the embedding."""
        path = last_run_file(self.file.path)
        try:
            self._last_run.write(path)
        except OSError as error:
            self.listener(Message(f"The settings of this run were not kept in {path.name}: {os_error_text(error)}."))

    def _report_verdict(self, *, over: bool = False) -> None:
        """Judge what was measured until now, and report it; at the end of the run keep it beside the embedding, too."""
        event = self.judge.verdict(self.done, self.last_step, self.curve.points, over=over)
        self.recorder.verdict(event)
        self.listener(event)
        if over:
            judged = replace(self._last_run, step=self.done, level=event.level, verdict=event.text)
            # a run without a step, such as one that was started by mistake, leaves what was known of the word before
            self._last_run = self._earlier if self._earlier.settings and self.done == self._first else judged
            self._keep_last_run()

    def _search_words(self) -> None:
        """Replace vectors by words of the checkpoint where those fit the pictures much better."""
        self.listener(Busy("Looking for words that fit the pictures better"))
        try:
            replaced = BetterWords(self._new_fit(), self.trained.vectors).replace()
        except torch.cuda.OutOfMemoryError:
            self.listener(Message("There is not enough memory to look for words on the way; training goes on without."))
            return
        if replaced:
            self.trained.optimizer.forget([row for row, _ in replaced])
            shown = ", ".join(f"{row + 1} “{word}”" for row, word in replaced)
            self.listener(Message(f"Words that fit the pictures better took the place of vectors, which learn on from there: {shown}."))

    def _evaluate(self) -> None:
        """Measure the vectors on the fixed batches."""
        if self.evaluation is None:
            return
        try:
            loss = self.evaluation.measure()
        except torch.cuda.OutOfMemoryError:
            self.evaluation = None
            self.listener(Message("There is not enough memory for evaluations; training goes on without."))
            return
        if self.curve.add(self.done, loss):
            self._best.copy_(self.trained.vectors)
            self._best_moments = self.trained.optimizer.state_dict()
        event = Evaluated(self.done, loss, self.curve.best[0])
        self.recorder.evaluation(event)
        self.listener(event)
        if self.done < self.last_step:
            with suppress(torch.cuda.OutOfMemoryError):
                self._report_verdict()

    @property
    def _is_cooling(self) -> bool:
        return isinstance(self._rates, CoolDown)

    def _cool_down(self) -> None:
        """Let the rate fall over a few more steps, and end there: further steps would not make the vectors better."""
        rate = self._rates.at(self.done + 1)
        self.last_step = min(self.config.total_steps, self.done + cool_down_steps(self.done))
        self.monitor.last_step = self.last_step
        self._tail = TailAverage(self.done)
        self.rates_changed = True
        self._rates = CoolDown(rate, self._rates.at(self.config.total_steps), self.done, self.last_step)
        self.listener(Message(f"Nothing more is learned; the run ends at step {self.last_step} of {self.config.total_steps}."))

    def _take_average(self) -> None:
        """Replace the last vectors by the average of the run's last steps: single steps move the vectors to and fro."""
        if self.config.method != "classic" and self._tail.count >= _LEAST_AVERAGED:
            self.trained.vectors.copy_(self._tail.average(self.trained.vectors, list(self.model.widths.values())))

    def _keep_best(self) -> None:
        """Go back to the vectors that did best, where the last ones are clearly worse."""
        if self.config.method != "classic" and self.curve.points and self.curve.has_risen:
            self.trained.vectors.copy_(self._best)
            self.trained.optimizer.load_state_dict(self._best_moments)
            step = self.judge.kept = self.curve.best[0]
            self.listener(Message(f"The vectors of step {step} are kept, because the evaluation was best there."))

    def _report(self, rates: Sequence[Rates]) -> TrainingError | None:
        """Report the last steps; the reason why training cannot continue, with the last good vectors restored."""
        events, problem = self.monitor.read(self.done, [each.learning_rate for each in rates])
        self.recorder.steps(events)
        for event in events:
            self.listener(event)
        if problem:
            self.done, vectors = self.monitor.good
            self.trained.vectors.copy_(vectors)
        elif rates:
            self._tail.add(self.trained.history[: len(rates)], self.done - len(rates))
        return problem

    def end(self, outcome: str = "", failure: TextualInversionError | None = None) -> None:
        """Write the vectors for the last time and say why the run ended; an error is kept in `failure`."""
        self.ended = True
        if failure is None:
            self._note()
        try:
            self._save_at_end()
        except EmbeddingError as error:
            failure = type(failure)(f"{failure} {error}", path=error.path, setting=failure.setting) if failure else error
        else:
            if failure is None:  # after a failure the moments belong to vectors that were not kept
                self._save_optimizer()
            self.journal.remove()
        self.failure = failure
        with suppress(RuntimeError):  # no memory for a verdict is no reason to lose the end of the run
            self._report_verdict(over=True)
        self.recorder.close()
        self.listener(Stopped(self.done, str(failure or outcome), str(self.file.path), failed=failure is not None))

    def rescue(self) -> None:
        """Write the vectors after an error that nobody expected."""
        if not self.ended:
            self._save_at_end()
            with suppress(RuntimeError):  # a lost device has no moments
                self._save_optimizer()
            self.journal.remove()
            self.recorder.close()

    def _note(self) -> None:
        """Write what is learned so far into the journal."""
        vectors = {**self.embedding.vectors, **self.model.conditioner.split(self.trained.vectors.detach())}
        if not bool(torch.isfinite(self.trained.vectors).all()):
            return
        state = self.trained.optimizer.state_dict() if self.config.save_optimizer else {}
        self.journal.write(Note(self.done, vectors, self._base, tuple(self.model.widths), state))

    def _current(self) -> Embedding:
        return self._embedding(self.done, self.trained.vectors)

    def _embedding(self, step: int, learned: torch.Tensor) -> Embedding:
        """An embedding of its own: the vectors may go on learning."""
        checkpoint_hash = self._checkpoint_hash()
        vectors = {**self.embedding.vectors, **self.model.conditioner.split(learned.detach().clone())}
        return self.embedding.with_vectors(vectors, step=step, checkpoint_name=self.model.name, checkpoint_hash=checkpoint_hash)

    def _checkpoint_hash(self) -> str | None:
        """The checkpoint's hash; None where the file cannot be read. While it is being computed, what the embedding said of it so far."""
        if not (self.ended or self._hash.done()):
            origin = self.embedding.provenance
            return origin.checkpoint_hash if origin.checkpoint_name == self.model.name else None
        try:
            return self._hash.result()
        except OSError as error:
            if not self._told_of_hash:
                self._told_of_hash = True
                reason = os_error_text(error)
                self.listener(Message(f"The embedding will not name its checkpoint's hash, because that file cannot be read: {reason}."))
            return None

    def _save(self) -> None:
        self._note()  # with the optimizer's state, which is lost if the program is killed between the two files
        self.embedding = self._current()
        self.file.write(self.embedding)
        self._base = base_of(self.file.path, self.embedding.vectors)
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


def _with_whole_paths(config: TrainingConfig) -> dict[str, Any]:
    """The settings; a folder that was given from where the program runs means the same from elsewhere."""
    values = config.to_dict()
    return {**values, "images": os.path.abspath(os.path.expanduser(values["images"]))}


def _is_due(every: int, number: int) -> bool:
    return every > 0 and number % every == 0


class TailAverage:
    """The average of the vectors of a run's last steps (Polyak and Juditsky, SIAM J. Control Optim. 30(4), 1992).

    Args:
        first_step: the vectors after this step are the first that count.
    """

    def __init__(self, first_step: int) -> None:
        self.first_step, self.count = first_step, 0
        self._total = torch.zeros(())

    def add(self, history: torch.Tensor, step: int) -> None:
        """Add vectors [steps, n, d]; the first ones are those after `step`."""
        counted = history[max(0, self.first_step - step) :]
        if len(counted) > 0:
            self._total = self._total + counted.sum(dim=0)
            self.count += len(counted)

    def average(self, last: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
        """The average of all that were added and the last vectors [n, d], as long as those are in the columns of each text encoder."""
        average = (self._total + last) / (self.count + 1)
        columns = zip(average.split(list(widths), dim=1), last.split(list(widths), dim=1))
        lengths = [(part, torch.linalg.vector_norm(own, dim=1, keepdim=True)) for part, own in columns]
        return torch.cat([torch.nn.functional.normalize(part, dim=1) * length for part, length in lengths], dim=1)


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
        preview_every: steps between two previews; 0 = none. `seconds_of_a_preview` is how long the last one took.
    """

    preview_every = 0
    seconds_of_a_preview = 0.0

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
        left = (self.last_step - done) / rate + self._previews_left(done) * self.seconds_of_a_preview
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

    def _previews_left(self, done: int) -> int:
        return -(-self.last_step // self.preview_every) - done // self.preview_every if self.preview_every else 0

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
