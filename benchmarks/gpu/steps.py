"""Seconds of a training step through the trainer's own stepper, from a CUDA graph and eager, and the processor's share of them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from benchmarks.gpu.plan import DTYPES, Plan, Row, figure, matmul_rate, peak, speed, tell, tidy
from benchmarks.gpu.steppers import BLOCK, Training, do_steps, stepper_of
from benchmarks.models import random_model
from textual_inversion.diffusion import kernels
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.training.stepper import Stepper

FEWEST_STEPS, MOST_STEPS = BLOCK, 500


def rows(plan: Plan) -> Iterator[Row]:
    yield {"what": "fused kernels", "note": kernels.status(plan.device) or "used"}
    yield {"what": f"matmul {plan.matrix}³", "precision": plan.half, "TFLOP/s": figure(matmul_rate(plan))}
    for number, (precision, batches) in enumerate(plan.timed_cases.items()):
        model = random_model(plan.timed, plan.device, DTYPES[precision], draw_on=plan.device)
        if number == 0:
            yield step_row(plan, model, precision, batches[0], graphed=False)
            if plan.is_cuda:
                with kernels.force("plain"):
                    row = step_row(plan, model, precision, batches[0], graphed=True)
                yield row | {"what": f"{row['what']}, without fused kernels"}
        for batch in batches if plan.is_cuda else batches[number == 0 :]:  # without CUDA there is no graph, so the first row is the same
            yield step_row(plan, model, precision, batch, graphed=True)


def step_row(plan: Plan, model: StableDiffusion, precision: str, batch: int, *, graphed: bool) -> Row:
    """Seconds of a step, the device's rate, the processor's share, and the peak of the memory with the model but without a VAE."""
    way = "graph" if graphed and plan.is_cuda else "eager"
    tell(f"timing steps of {plan.timed.name}, {precision}, batch {batch}, {way}")
    row = {"what": f"training step, {way}", "model": plan.timed.name, "precision": precision, "batch": str(batch)}
    tidy(plan)
    try:
        stepper = stepper_of(model, plan.timed, [Training(batch=batch)], graphed=graphed)
        seconds, busy = time_steps(plan, stepper)
    except torch.cuda.OutOfMemoryError:
        return row | {"note": "out of memory"}
    row |= speed(plan, model=plan.timed, seconds=seconds, batch=batch)
    note = f"no graph: {stepper.graphs.failed}" if stepper.graphs.failed else ""
    return row | {"host's share": f"{busy / seconds:.0%}", **peak(plan), "note": note}


def time_steps(plan: Plan, stepper: Stepper) -> tuple[float, float]:
    """Seconds of a step, and the seconds of it in which the processor is busy. Whole blocks of 10 steps are timed, after a warm-up."""
    do_steps(stepper, BLOCK)  # the graphs are recorded here
    begun = time.perf_counter()
    do_steps(stepper, 2)
    once = (time.perf_counter() - begun) / 2
    steps = max(FEWEST_STEPS, min(MOST_STEPS, int(plan.seconds / once) // BLOCK * BLOCK))
    begun = time.perf_counter()
    busy = do_steps(stepper, steps)
    return (time.perf_counter() - begun) / steps, busy / steps
