"""The training step beside the CPU's: the same vectors, a loss that falls, and no step that waits for the device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.gpu.plan import DTYPES, Plan, Row, tell, without_tf32, yes_or_no
from benchmarks.models import Sizes, first_vectors, make_batch, random_model
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.step import TrainingStep

LEARNING_RATE = 0.005
LEAST_COSINE = {"fp32": 0.999, "bf16": 0.98, "fp16": 0.99}  # of the update, to the CPU's in fp32


def rows(plan: Plan) -> Iterator[Row]:
    for sizes in plan.checked:
        yield from check(plan, sizes)


def check(plan: Plan, sizes: Sizes) -> Iterator[Row]:
    """Compare vectors after some steps with the CPU's in fp32; check that the loss falls and that no step waits for the device."""
    tell(f"checking {sizes.name}")
    without_tf32()
    steps = plan.checked_steps
    reference = update(sizes, "cpu", torch.float32, steps)
    for precision in plan.precisions:
        cosine, difference = closeness(update(sizes, plan.device, DTYPES[precision], steps), reference)
        figures = {"cosine": f"{cosine:.6f}", "max rel. diff.": f"{difference:.1e}", "ok": yes_or_no(cosine >= LEAST_COSINE[precision])}
        yield {"what": f"{steps} steps, to CPU fp32", "model": sizes.name, "precision": precision, "batch": "2", **figures}
    before, after = losses_of_one_batch(plan, sizes)
    what = f"loss {before:.4f} to {after:.4f} in {plan.falling_steps} steps"
    yield {"what": what, "model": sizes.name, "precision": "fp32", "batch": "2", "ok": yes_or_no(after < before)}
    if plan.is_cuda:
        note = what_waits(plan, sizes)
        yield {"what": "a step never waits", "model": sizes.name, "precision": "fp16", "ok": yes_or_no(not note), "note": note}


def start(sizes: Sizes, device: str, dtype: torch.dtype) -> TrainingStep:
    """A step at its beginning."""
    return TrainingStep(random_model(sizes, device, dtype), first_vectors(sizes), TrainingConfig("word", "pictures"))


def update(sizes: Sizes, device: str, dtype: torch.dtype, steps: int) -> torch.Tensor:
    """How far some steps, each with a batch of its own, move the vectors: fp32 [n, d] on the CPU."""
    step = start(sizes, device, dtype)
    for seed in range(steps):
        batch = make_batch(sizes, 2, seed, device)
        step.run(lambda batch=batch: batch, LEARNING_RATE, 1.0)
    return step.vectors.detach().cpu() - first_vectors(sizes)


def closeness(ours: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Cosine of two tensors, and their largest difference relative to the largest number."""
    cosine = F.cosine_similarity(ours.flatten().double(), reference.flatten().double(), dim=0)
    return float(cosine), float((ours - reference).abs().max() / reference.abs().max())


def losses_of_one_batch(plan: Plan, sizes: Sizes) -> tuple[float, float]:
    """Loss of one fixed batch at the start and after the steps: the geometric mean of its rows, which training lowers."""
    step, batch = start(sizes, plan.device, torch.float32), make_batch(sizes, 2, 0, plan.device)

    @torch.no_grad()
    def loss() -> float:
        return math.exp(float(step.losses(batch).log().mean()))

    before = loss()
    for _ in range(plan.falling_steps):
        step.run(lambda: batch, LEARNING_RATE, 1.0)
    return before, loss()


def what_waits(plan: Plan, sizes: Sizes) -> str:
    """What lets the processor wait for the device in a step; in fp16, where the loss is scaled too. Empty where nothing does."""
    step, batch = start(sizes, plan.device, torch.float16), make_batch(sizes, 2, 0, plan.device)
    step.run(lambda: batch, LEARNING_RATE, 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run(lambda: batch, LEARNING_RATE, 1.0)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""
