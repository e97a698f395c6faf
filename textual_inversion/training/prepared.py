"""An embedding with the data that it is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from textual_inversion.diffusion.conditioning import VectorTable
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.embedding import Embedding
from textual_inversion.prompts.templates import DEFAULT_TEMPLATE, read_template, template_folder
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.data.batches import BatchMaker, PromptMaker
from textual_inversion.training.data.encoding import InterruptedEncodingError, encode_pictures, list_pictures
from textual_inversion.training.data.training_set import TrainingSet
from textual_inversion.training.events import Event, Started, Stopped
from textual_inversion.training.methods import start_at_word_length


@dataclass
class Prepared:
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
    is_started: bool = False

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
            return False
        self.is_started = True
        self.listener(Started(config.name, first_step, config.steps, data.pictures, data.skipped))
        self.batches = BatchMaker(config, data.buckets, prompts, noise_device=model.device, repeats=data.repeats, first_step=first_step)
        data.buckets.clear()  # the batches have taken over what they need; with many pictures this frees gigabytes
        return True

    def report_interrupt(self) -> None:
        """Send the events of a run that was interrupted before its first step."""
        first_step = self.embedding.provenance.step or 0
        if not self.is_started:
            self.listener(Started(self.config.name, first_step, self.config.steps, len(self.listed.pictures), self.listed.skipped))
        self.listener(Stopped(first_step, "interrupted", str(self.path)))

    def start(self, model: StableDiffusion) -> torch.Tensor:
        """The vectors [n, d] that training starts from."""
        vectors = self.table.vectors
        if self.config.method != "classic":
            return start_at_word_length(vectors, model.word_norm, self.config, is_new=self.embedding.provenance.step == 0)
        return vectors
