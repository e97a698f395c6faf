"""The training data of a run: its folder listed, its pictures encoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.errors import TrainingError
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.text import counted
from textual_inversion.training.data.encoding import encode_set
from textual_inversion.training.data.latents import LatentBucket, LatentStore, encoder_hash
from textual_inversion.training.data.training_set import DatasetOptions, TrainingSet, scan_training_set
from textual_inversion.training.data.views import BUCKETS, FIXED, OWN, Sizing
from textual_inversion.training.events import Event, Message


class InterruptedEncodingError(Exception):
    """Ends the encoding of pictures; caught by whoever asked for it."""


@dataclass(frozen=True)
class TrainingData:
    """Encoded pictures and their captions; a picture is its index.

    Attributes:
        captions: of all pictures of the folder, also of those that turned out to be damaged.
        repeats: how often each is shown while others are shown once.
        buckets: the encoded pictures, one bucket for each size, on the model's device.
        skipped: (file name, reason) of those that are not in `buckets`.
    """

    captions: list[str]
    repeats: list[int]
    buckets: list[LatentBucket]
    skipped: tuple[tuple[str, str], ...]

    @property
    def pictures(self) -> int:
        """How many are learned from."""
        return sum(len(set(bucket.pictures)) for bucket in self.buckets)


def dataset_options(config: TrainingConfig) -> DatasetOptions:
    """The options for a training set among the settings."""
    method = OWN if config.no_resize else BUCKETS if config.buckets else FIXED
    return DatasetOptions(
        Sizing(config.width, config.height, method, config.bucket_step, config.crops),
        word_regex=config.filename_regex,
        word_join=config.filename_join,
        background=config.background,
        weighted=config.alpha_weight,
        subfolders=config.subfolders,
    )


def list_pictures(config: TrainingConfig) -> TrainingSet:
    """The folder's pictures with their captions and sizes; see `scan_training_set` for its errors."""
    return scan_training_set(config.images, dataset_options(config))


def encode_pictures(
    config: TrainingConfig, model: StableDiffusion, listed: TrainingSet, listener: Callable[[Event], None], should_stop: Callable[[], bool]
) -> TrainingData:
    """Encode the pictures on the model's device.

    Raises:
        InterruptedEncodingError: `should_stop` asked for it.
        DatasetError: none of the pictures can be used.
        TrainingError: the device ran out of memory.
    """

    def progress(done: int, total: int) -> None:
        if should_stop():
            raise InterruptedEncodingError

    count = len(listed.pictures)
    listener(Message(f"Encoding {counted(count, 'picture')}"))
    vae, store = model.vae, None
    if config.latent_cache:
        store = LatentStore(config.latent_cache, f"{encoder_hash(vae.encoder, vae.quant_conv)} {vae.scale_factor}")
    try:
        encoded = encode_set(vae, listed, flip=config.flip, progress=progress, store=store)
    except torch.cuda.OutOfMemoryError as error:
        size = f"{config.width} x {config.height}"
        sentence = f"The device ran out of memory while it encoded pictures of {size} pixels; use a smaller size."
        raise TrainingError(sentence, setting="width") from error
    for problem in store.problems.values() if store else ():
        listener(Message(problem))
    if encoded.stored:
        listener(Message(f"Latents of {encoded.stored} of {counted(count, 'picture')} were there from an earlier run"))
    failed = [(listed.pictures[index].path.name, str(error)) for index, error in sorted(encoded.failed.items())]
    return TrainingData(
        [picture.caption for picture in listed.pictures],
        [picture.repeats for picture in listed.pictures],
        [bucket.to(model.device) for bucket in encoded.buckets],
        (*listed.skipped, *failed),
    )
