"""What a run learns from: its folder listed, its pictures encoded once. Knows nothing of steps, prompts or files of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.errors import TrainingError
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.data.encoding import Encoded, encode_set
from textual_inversion.training.data.latent_store import LatentStore, encoder_hash
from textual_inversion.training.data.latents import LatentBucket
from textual_inversion.training.data.sizes import BUCKETS, FIXED, OWN, Sizing
from textual_inversion.training.data.training_set import Reading, TrainingSet, scan_training_set
from textual_inversion.training.events import Event, Message


class InterruptedEncodingError(Exception):
    """Ends the encoding of pictures; caught by whoever asked for it."""


@dataclass(frozen=True)
class TrainingData:
    """Encoded pictures and what is said of them; a picture is its index.

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


def reading(config: TrainingConfig) -> Reading:
    """How the settings want their folder read."""
    method = OWN if config.no_resize else BUCKETS if config.buckets else FIXED
    return Reading(
        Sizing(config.width, config.height, method, config.bucket_step, config.crops),
        word_regex=config.filename_regex,
        word_join=config.filename_join,
        background=config.background,
        weighted=config.alpha_weight,
        subfolders=config.subfolders,
    )


def list_pictures(config: TrainingConfig) -> TrainingSet:
    """The folder's pictures with their captions and sizes; see `scan_training_set` for its errors."""
    return scan_training_set(config.images, reading(config))


def encode_pictures(
    config: TrainingConfig, model: StableDiffusion, listed: TrainingSet, listener: Callable[[Event], None], should_stop: Callable[[], bool]
) -> TrainingData:
    """Encode the pictures on the model's device.

    Raises:
        InterruptedEncodingError: `should_stop` said so.
        DatasetError: none of the pictures can be used.
        TrainingError: the device ran out of memory.
    """

    def look(done: int, total: int) -> None:
        if should_stop():
            raise InterruptedEncodingError

    count = len(listed.pictures)
    listener(Message(f"Encoding {count} picture{'s' * (count != 1)}"))
    store = _store(config, model)
    try:
        encoded = encode_set(model.vae, listed, flip=config.flip, progress=look, store=store)
    except torch.cuda.OutOfMemoryError as error:
        size = f"{config.width} x {config.height}"
        raise TrainingError(f"The device ran out of memory while it encoded pictures of {size} pixels; use a smaller size.") from error
    for problem in store.problems.values() if store else ():
        listener(Message(problem))
    if encoded.stored:
        listener(Message(f"Latents of {encoded.stored} of {count} picture{'s' * (count != 1)} were there from an earlier run"))
    return _data(listed, encoded, model)


def _store(config: TrainingConfig, model: StableDiffusion) -> LatentStore | None:
    if not config.latent_cache:
        return None
    vae = model.vae
    return LatentStore(config.latent_cache, f"{encoder_hash(vae.encoder, vae.quant_conv)} {vae.scale_factor}")


def _data(listed: TrainingSet, encoded: Encoded, model: StableDiffusion) -> TrainingData:
    failed = [(listed.pictures[index].path.name, str(error)) for index, error in sorted(encoded.failed.items())]
    return TrainingData(
        [picture.caption for picture in listed.pictures],
        [picture.repeats for picture in listed.pictures],
        [bucket.to(model.device) for bucket in encoded.buckets],
        (*listed.skipped, *failed),
    )
