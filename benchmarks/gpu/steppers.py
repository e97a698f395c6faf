"""Steppers over random models and random pictures, which work as the trainer's without its files and its tokenizer.

Legend: b batch, c channels, h w latent size, n vectors, d width.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from benchmarks.models import NUM_VECTORS, Sizes, first_vectors, random_prompts
from textual_inversion.diffusion.conditioning import TokenizedPrompts
from textual_inversion.diffusion.graphs import GraphCache
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.data.batches import BatchMaker, PromptMaker, together
from textual_inversion.training.data.latents import LatentBucket, LatentMoments
from textual_inversion.training.step import TrainingStep
from textual_inversion.training.stepper import Plan, Rates, Stepper

PICTURES, BLOCK = 6, 10  # the trainer reads the losses after each block of 10 steps
RATES = Rates(0.005, 1.0)


@dataclass(frozen=True)
class Training:
    """The training of one embedding.

    Attributes:
        batch: pictures b of a pass.
        buckets: sizes of pictures.
        passes: of a step.
        clip: mode of gradient clipping.
        method: of training; directional plans its timesteps, classic draws them on the device.
        seed: of everything random.
    """

    batch: int = 1
    buckets: int = 1
    passes: int = 1
    clip: str = "off"
    method: str = "directional"
    seed: int = 0

    @property
    def config(self) -> TrainingConfig:
        """The same as settings."""
        return TrainingConfig(
            f"word{self.seed}", "pictures", method=self.method, batch_size=self.batch, gradient_accumulation_steps=self.passes,
            clip_mode=self.clip, seed=self.seed,
        )  # fmt: skip


class RandomPrompts:
    """Stands for a `PromptMaker`: every picture has one prompt of random tokens."""

    def __init__(self, sizes: Sizes, generator: torch.Generator, first_row: int) -> None:
        self.captions, self.chunks = [""] * PICTURES, 1
        self._prompts = [random_prompts(sizes, 1, generator, "cpu", first_row) for _ in self.captions]

    def batch(self, pictures: Sequence[int], rng: random.Random) -> TokenizedPrompts:
        """The prompts of some pictures, on the CPU."""
        return together([self._prompts[picture] for picture in pictures])


def maker_of(model: StableDiffusion, sizes: Sizes, training: Training, first_row: int = 0) -> BatchMaker:
    """The batches of one embedding, over six random pictures; the second bucket's are half as wide again."""
    generator = torch.Generator().manual_seed(training.seed + 50)
    groups = [tuple(range(number, PICTURES, training.buckets)) for number in range(training.buckets)]
    buckets = []
    for number, pictures in enumerate(groups):
        width = sizes.latents + number * sizes.latents // 2
        shape = (len(pictures), sizes.unet.in_channels, sizes.latents, width)
        mean, std = (torch.randn(shape, generator=generator) for _ in range(2))  # pictures c h w
        buckets.append(LatentBucket(LatentMoments(mean, std.abs()), pictures).to(model.device))
    prompts = cast(PromptMaker, RandomPrompts(sizes, generator, first_row))
    return BatchMaker(training.config, buckets, prompts, noise_device=model.device)


def stepper_of(model: StableDiffusion, sizes: Sizes, trainings: Sequence[Training], *, graphed: bool = True) -> Stepper:
    """The steps of one embedding or of several; each starts from vectors of its seed.

    Args:
        graphed: from CUDA graphs where the device has them; otherwise one kernel after the other.
    """
    starts = [first_vectors(sizes, training.seed) for training in trainings]
    step = TrainingStep(model, starts, [training.config for training in trainings])
    makers = [maker_of(model, sizes, training, number * NUM_VECTORS) for number, training in enumerate(trainings)]
    return Stepper(step, makers, graphs=None if graphed else GraphCache("cpu"))  # nothing is recorded for the CPU


def do_steps(stepper: Stepper, count: int) -> float:
    """Do steps as the trainer does, in blocks. Waits for the device at the end of each.

    Returns:
        The seconds in which the processor planned, sent and started them; the waiting does not count.
    """
    busy, done = 0.0, 0
    plan = _plan(stepper, count)
    while plan:
        begun = time.perf_counter()
        stepper.load(plan)
        for index in range(len(plan)):
            stepper.run(index)
        done += len(plan)
        following = _plan(stepper, count - done)
        busy += time.perf_counter() - begun
        for trained in stepper.step.trained:
            trained.read(len(plan))
        plan = following
    return busy


def _plan(stepper: Stepper, left: int) -> Plan:
    everyone = range(len(stepper.step.trained))
    return stepper.plan([dict.fromkeys(everyone, RATES) for _ in range(min(BLOCK, left))])
