"""Fits a run into the memory of its device: checkpointing, smaller batches, the VAE aside. Decided before the start, by an estimate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

import torch

from textual_inversion.diffusion import kernels
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.estimate import StepCost, step_cost

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
    plain: StepCost, checkpointed: StepCost, batch_size: int, available: float, wish: str = "auto", *, most_parts: int = 1024
) -> MemoryPlan:
    """The fastest plan that fits; the smallest one where none does.

    Args:
        plain, checkpointed: the costs of a pass without and with checkpointing.
        batch_size: pictures in one pass, as asked for.
        available: bytes that the run may take, the model included.
        wish: `on` or `off` where the user has decided about checkpointing; `auto` otherwise.
        most_parts: into how many passes the batch may be split.
    """
    plans: list[MemoryPlan] = []
    sizes = [size for size in range(batch_size, 0, -1) if batch_size % size == 0 and batch_size // size <= most_parts]
    for count in sizes:
        if wish != "on":
            plans += [MemoryPlan(plain.training_memory(count, vae_stays=stays), False, not stays, count) for stays in (True, False)]
        if wish != "off":
            plans.append(MemoryPlan(checkpointed.training_memory(count, vae_stays=False), True, True, count))
    # A smaller pass costs little where the card is busy with few pictures; checkpointing costs two fifths everywhere.
    plans.sort(key=lambda plan: (plan.checkpointing, -plan.batch_size, plan.vae_waits))
    return next((plan for plan in plans if plan.needed <= available), min(plans, key=lambda plan: plan.needed))


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
    if model.device.type != "cuda":
        return MemoryPlan(0.0, wish == "on", False, batch_size), ""
    free, _ = torch.cuda.mem_get_info(model.device)
    available = free + torch.cuda.memory_reserved(model.device)  # what the model has is counted as needed
    fused = not kernels.status(model.device)
    costs = [step_cost(model.file, size, model.dtype, chunks, fused=fused, checkpointing=on) for on in (False, True)]
    plan = choose(costs[0], costs[1], batch_size, available, wish, most_parts=most_parts)
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
        model.vae.to(model.device)
        yield
    finally:
        _move(model.vae, device)


def _move(module: torch.nn.Module, device: torch.device) -> None:
    """Move a module. Where the device has no room, the module stays where it is: what was learned is worth more."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(torch.cuda.OutOfMemoryError):
        module.to(device)
