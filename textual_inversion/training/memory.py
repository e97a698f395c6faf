"""Fits a run into the memory of its device: checkpointing, smaller batches, the VAE aside. Decided before the start, by an estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

import torch

from textual_inversion.diffusion import kernels
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.diffusion.vae import VAE
from textual_inversion.errors import TrainingError
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.estimate import ENCODING_WORKSPACE, MemoryCost, encoding_bytes, free_memory, memory_cost

_GIB = 2**30


@dataclass(frozen=True)
class MemoryPlan:
    """How a run fits.

    Attributes:
        needed: bytes at the peak of a step, the model included.
        checkpointing: blocks of the UNet are computed again in the backward pass.
        vae_waits: the VAE is in the processor's memory while no picture is encoded or drawn.
        batch_size: pictures in one pass; a divisor of the batch size that was asked for.
    """

    needed: float
    checkpointing: bool
    vae_waits: bool
    batch_size: int

    def applied_to(self, config: TrainingConfig) -> TrainingConfig:
        """The settings with the batch in smaller passes, which give the same gradient."""
        passes = config.gradient_accumulation_steps * config.batch_size // self.batch_size
        return replace(config, batch_size=self.batch_size, gradient_accumulation_steps=passes)

    def sentence(self, available: float, asked: int) -> str:
        """What was changed to make it fit, for the user; empty where nothing was."""
        means = []
        if self.checkpointing:
            means.append("gradient checkpointing (about two fifths slower)")
        if self.batch_size < asked:
            means.append(f"batches of {asked} in passes of {self.batch_size}")
        if not means:
            return ""
        free = f"{self.needed / _GIB:.1f} of {available / _GIB:.1f} GB"
        return f"To fit into the device's memory ({free}) training uses {' and '.join(means)}."


def choose(
    cost_of: Callable[[bool], MemoryCost], batch_size: int, available: float, wish: str = "auto", *, most_parts: int = 1024
) -> MemoryPlan:
    """The fastest plan that fits; the smallest one where none does.

    Args:
        cost_of: without and with checkpointing -> the cost of a pass; asked for only where it matters, because it takes about a second.
        batch_size: pictures in one pass, as asked for.
        available: bytes that the run may take, the model included.
        wish: `on` or `off` where the user has decided about checkpointing; `auto` otherwise.
        most_parts: into how many passes the batch may be split.
    """
    sizes = [size for size in range(batch_size, 0, -1) if batch_size % size == 0 and batch_size // size <= most_parts]
    plans: list[MemoryPlan] = []
    # A smaller pass costs little where the card is busy with few pictures; checkpointing costs two fifths everywhere.
    for checkpointing in {"on": (True,), "off": (False,)}.get(wish, (False, True)):
        cost = cost_of(checkpointing)
        for size in sizes:
            for vae_stays in (False,) if checkpointing else (True, False):
                plans.append(MemoryPlan(cost.training(size, vae_stays=vae_stays), checkpointing, not vae_stays, size))
                if plans[-1].needed <= available:
                    return plans[-1]
    return min(plans, key=lambda plan: plan.needed)


@dataclass(frozen=True)
class EncodingPlan:
    """How the pictures are encoded.

    Attributes:
        together: pictures in one pass of the VAE.
        unet_waits: the UNet is in the processor's memory meanwhile.
    """

    together: int = 4
    unet_waits: bool = False


def choose_encoding(one_picture: float, unet: float, usable: float) -> EncodingPlan:
    """The fastest plan that fits; the smallest one where none does. All in bytes.

    Args:
        one_picture: that a pass of the VAE takes for each picture.
        unet: of the UNet's weights.
        usable: that the device has beside the model.
    """
    most = EncodingPlan().together
    fits = [together for together in range(most, 0, -1) if ENCODING_WORKSPACE + together * one_picture <= usable]
    if fits:
        return EncodingPlan(fits[0])
    room = usable + unet - ENCODING_WORKSPACE
    return EncodingPlan(max(1, min(most, int(room // one_picture))), unet_waits=True)


def plan_encoding(model: StableDiffusion, size: tuple[int, int]) -> EncodingPlan:
    """The plan for pictures of `size` (width, height); only CUDA says how much memory there is."""
    free = free_memory(model.device)
    if free is None:
        return EncodingPlan()
    usable = free + torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    unet = sum(each.numel() * each.element_size() for each in model.unet.parameters())
    return choose_encoding(encoding_bytes(model.vae.config.base_channels, size), unet, usable)


@contextmanager
def unet_aside(model: StableDiffusion, plan: EncodingPlan) -> Iterator[None]:
    """Inside, the UNet is in the processor's memory if the plan wants it."""
    if not plan.unet_waits:
        yield
        return
    device = model.device
    try:
        model.unet.to("cpu")
        torch.cuda.empty_cache()
        yield
    finally:
        torch.cuda.empty_cache()
        _bring_back(model, device)


def _bring_back(model: StableDiffusion, device: torch.device) -> None:
    """Move the UNet to its device again; where another program has taken the room, none of it stays there.

    Raises:
        TrainingError: there is no room.
    """
    try:
        model.unet.to(device)
    except torch.cuda.OutOfMemoryError as error:
        model.unet.to("cpu")
        reason = "The device has no room for the UNet any more, because other programs took it; close them and train again"
        raise TrainingError(f"{reason}.", setting="device") from error


def plan_memory(
    wish: str, model: StableDiffusion, size: tuple[int, int], chunks: int, batch_size: int, *, most_parts: int = 1024
) -> tuple[MemoryPlan, str]:
    """The plan for a run, and what was changed to make it fit. Only CUDA says how much memory there is; elsewhere the wish counts.

    Args:
        wish: the setting `gradient_checkpointing`.
        size: (width, height) of the largest pictures.
        chunks: of the longest prompt.
        batch_size: pictures in one pass, as asked for.
        most_parts: into how many passes the batch may be split.
    """
    free = free_memory(model.device)
    if free is None:
        return MemoryPlan(0.0, wish == "on", False, batch_size), ""
    available = free + torch.cuda.memory_reserved(model.device)  # what the model has is counted as needed
    fused = not kernels.status(model.device)
    plan = choose(
        lambda checkpointing: memory_cost(model.file, size, model.dtype, chunks, fused=fused, checkpointing=checkpointing),
        batch_size,
        available,
        wish,
        most_parts=most_parts,
    )
    return plan, plan.sentence(available, batch_size)


@contextmanager
def fitted(model: StableDiffusion, plan: MemoryPlan) -> Iterator[ExitStack]:
    """Inside, the model is as the plan wants it; afterwards it is as before.

    Yields:
        what is released before the VAE comes back, such as the memory of graphs.
    """
    before, device = model.unet.checkpointing, model.vae.device
    with ExitStack() as restored:
        restored.callback(setattr, model.unet, "checkpointing", before)
        restored.callback(_move, model.vae, device)
        model.unet.checkpointing = plan.checkpointing
        if plan.vae_waits:
            model.vae.to("cpu")
        with ExitStack() as release:
            yield release


@contextmanager
def vae_at_work(model: StableDiffusion) -> Iterator[None]:
    """Inside, the VAE is on the model's device."""
    device = model.vae.device
    try:
        if device != model.device:
            model.vae.to(model.device)
        yield
    finally:
        _move(model.vae, device)


def _move(module: VAE, device: torch.device) -> None:
    """Move the VAE, if it is elsewhere. Where the device has no room, it stays where it is: what was learned is worth more."""
    if module.device == device:
        return
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(torch.cuda.OutOfMemoryError):
        module.to(device)
