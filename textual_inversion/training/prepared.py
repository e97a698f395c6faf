"""An embedding with the data that it is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from textual_inversion.diffusion.conditioning import VectorTable
from textual_inversion.diffusion.model import StableDiffusion, is_full_size
from textual_inversion.embedding import Embedding
from textual_inversion.errors import ConfigError
from textual_inversion.prompts.templates import DEFAULT_TEMPLATE, has_caption_beside_name, read_template, template_folder
from textual_inversion.settings.creation import wants_search
from textual_inversion.settings.schema import AUTO
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.text import counted
from textual_inversion.training.data.batches import BatchMaker, PromptMaker
from textual_inversion.training.data.encoding import InterruptedEncodingError, encode_pictures, list_pictures
from textual_inversion.training.data.training_set import TrainingSet
from textual_inversion.training.embedding_file import GuardedFile
from textual_inversion.training.events import Event, Message, Started, Stopped
from textual_inversion.training.initial_words import find_initial_words
from textual_inversion.training.memory import EncodingPlan
from textual_inversion.training.methods import start_at_word_length
from textual_inversion.training.remarks import about_changing, about_crops, remarks
from textual_inversion.training.search_plan import first_search_budget
from textual_inversion.training.word_fit import Budget, WordFit

_LEAST_ROWS, _MOST_FIXED = 8, 24  # that words are compared by
_ROWS_OF_A_PLACE = 10  # forward passes for each of these rows: the gradient, the words tried, and a part of the first noun's search


@dataclass
class Prepared:
    """An embedding and, once prepared, the data to train it on.

    Attributes:
        file: the embedding's file, guarded from when it was read.
        asked: the settings as they were given, such as steps `auto`.
    """

    config: TrainingConfig
    listener: Callable[[Event], None]
    path: Path
    embedding: Embedding
    table: VectorTable = field(init=False)
    lines: list[str] = field(init=False)
    listed: TrainingSet = field(init=False)
    prompts: PromptMaker = field(init=False)
    batches: BatchMaker = field(init=False)
    is_started: bool = False

    def __post_init__(self) -> None:
        self.file, self.asked = GuardedFile(self.path, self.embedding), self.config

    def read(self, model: StableDiffusion, first_row: int) -> None:
        """Read the template, list the pictures and settle how many steps there are.

        Args:
            first_row: of the embedding's vectors, among those of all embeddings in the run.

        Raises:
            ConfigError: the embedding has had all its steps already.
        """
        config, conditioner = self.config, model.conditioner
        if config.steps != AUTO:
            self._require_steps_left()
        self.lines = read_template(config.template or template_folder() / DEFAULT_TEMPLATE)
        self.embedding = self.embedding.for_encoders(model.widths)
        named = {config.name: self.embedding}
        self.table = conditioner.table_of(named, first_row=first_row)
        self.listed = list_pictures(config)
        self.config = config = config.with_steps(self.listed.shown, full_size=is_full_size(model.file))
        self._require_steps_left()
        captions = [picture.caption for picture in self.listed.pictures]
        self.prompts = PromptMaker(config, self.lines, captions, conditioner, self.table)
        beside_name = captions if has_caption_beside_name(self.lines) else []
        questions = remarks(config, beside_name, self.embedding.num_vectors, self.embedding, self.embedding.provenance.step or 0)
        changing = about_changing([*self.lines, *dict.fromkeys(captions)])
        for note in (*self.listed.notes, *([changing] if changing else [])):
            self.listener(Message(note))
        for sentence in filter(None, (about_crops(config, self.listed), *questions)):
            self.listener(Message(sentence, important=True))

    def _require_steps_left(self) -> None:
        first_step, steps = self.embedding.provenance.step or 0, self.config.total_steps
        if first_step >= steps:
            trained = counted(first_step, "step")
            sentence = f"{self.config.name!r} has been trained for {trained}; set steps above that to go on (they are {steps})."
            raise ConfigError(sentence, setting="steps")

    def encode(self, model: StableDiffusion, should_stop: Callable[[], bool], plan: EncodingPlan | None = None) -> bool:
        """Encode the pictures; False where that was interrupted."""
        config, listed, prompts = self.config, self.listed, self.prompts
        first_step = self.embedding.provenance.step or 0
        try:
            data = encode_pictures(config, model, listed, self.listener, should_stop, together=(plan or EncodingPlan()).together)
        except InterruptedEncodingError:
            return False
        self.is_started = True
        self.listener(Started(config.name, first_step, config.total_steps, data.pictures, data.skipped))
        self.batches = BatchMaker(config, data.buckets, prompts, noise_device=model.device, repeats=data.repeats, first_step=first_step)
        data.buckets.clear()  # the batches have taken over what they need; with many pictures this frees gigabytes
        return True

    def find_words(self, model: StableDiffusion, should_stop: Callable[[], bool]) -> None:
        """Choose the words that the embedding starts from, where it was created to have them found and has had no steps."""
        origin = self.embedding.provenance
        if origin.step != 0 or not wants_search(origin.initializer_text):
            return
        self.listener(Message("Looking for words that describe the pictures"))
        config, count = self.config, self.embedding.num_vectors
        left = first_search_budget(config)
        fixed = min(max(left // (count * _ROWS_OF_A_PLACE), _LEAST_ROWS), _MOST_FIXED)
        fit = self.word_fit(model, fixed, Budget(left, should_stop))
        try:
            ids = find_initial_words(fit)
        except torch.cuda.OutOfMemoryError:
            self.listener(Message("There is not enough memory to look for words; training starts without."))
            return
        if should_stop():
            return  # the next run looks for them
        if not ids:
            self.listener(Message("No words were found, because the checkpoint knows none of those that the search begins with."))
            return
        text, vectors = " ".join(map(fit.tokenizer.word, ids)), fit.vectors_of(ids).cpu()
        self.embedding = replace(
            self.embedding,
            vectors={**self.embedding.vectors, **model.conditioner.split(vectors)},
            provenance=replace(origin, initializer_text=text),
        )
        self.table = replace(self.table, vectors=vectors.to(model.device))
        self.listener(Message(f"It starts from the words “{text}”."))

    def word_fit(self, model: StableDiffusion, rows: int, budget: Budget) -> WordFit:
        """Measures how well words fit the pictures, by so many rows."""
        first_row = self.table.offsets[self.config.name]
        return WordFit(
            model, self.batches.fixed(rows), self.embedding.num_vectors, budget, first_row=first_row, clip_skip=self.config.clip_skip
        )

    def report_interrupt(self) -> None:
        """Send the events of a run that was interrupted before its first step."""
        first_step = self.embedding.provenance.step or 0
        if not self.is_started:
            self.listener(Started(self.config.name, first_step, self.config.total_steps, len(self.listed.pictures), self.listed.skipped))
        self.listener(Stopped(first_step, "interrupted", str(self.path)))

    def start(self, model: StableDiffusion) -> torch.Tensor:
        """The vectors [n, d] that training starts from."""
        vectors = self.table.vectors
        if self.config.method != "classic":
            return start_at_word_length(vectors, model.words, self.config, is_new=self.embedding.provenance.step == 0)
        return vectors
