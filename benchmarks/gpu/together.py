"""Several embeddings trained in the same steps, beside the same trainings one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from benchmarks.gpu.plan import Plan, Row, tell, without_tf32, yes_or_no
from benchmarks.gpu.steppers import BLOCK, Training, do_steps, stepper_of
from benchmarks.models import random_model
from textual_inversion.training.stepper import Stepper

MOST_DIFFERENCE = 1e-4  # of the vectors, in all steps; sums over batches of another size round differently


def rows(plan: Plan) -> Iterator[Row]:
    """Seconds of the steps after the first block, in which graphs are recorded, and the largest difference of the vectors."""
    without_tf32()
    tell(f"training {plan.embeddings} embeddings together and one after the other")
    model, sizes = random_model(plan.together, plan.device, torch.float32), plan.together
    trainings = [Training(seed=number) for number in range(plan.embeddings)]
    all_at_once = stepper_of(model, sizes, trainings)
    together = _seconds(plan, all_at_once)
    alone, difference = 0.0, 0.0
    for training, trained in zip(trainings, all_at_once.step.trained):
        single = stepper_of(model, sizes, [training])
        alone += _seconds(plan, single)
        difference = max(difference, float((single.step.trained[0].vectors - trained.vectors).abs().max()))
    row = {"model": sizes.name, "precision": "fp32", "batch": "1 each"}
    steps = f"{_timed_steps(plan)} steps"
    yield row | {"what": f"{plan.embeddings} embeddings, one after the other, {steps}", "seconds": f"{alone:.2f}"}
    figures = {"seconds": f"{together:.2f}", "times as fast": f"{alone / together:.2f}", "max diff.": f"{difference:.1e}"}
    note = f"no graph: {all_at_once.graphs.failed}" if all_at_once.graphs.failed else ""
    what = f"{plan.embeddings} embeddings, together, {steps}"
    yield row | {"what": what, **figures, "ok": yes_or_no(difference <= MOST_DIFFERENCE), "note": note}


def _timed_steps(plan: Plan) -> int:
    return max(1, plan.compared_steps - BLOCK)


def _seconds(plan: Plan, stepper: Stepper) -> float:
    do_steps(stepper, min(BLOCK, plan.compared_steps - 1))
    begun = time.perf_counter()
    do_steps(stepper, _timed_steps(plan))
    return time.perf_counter() - begun
