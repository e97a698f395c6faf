"""Steps from a CUDA graph beside the same steps one kernel after the other: the vectors after 50 steps.

Legend: n vectors, d width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.checks import closeness
from benchmarks.gpu.plan import DTYPES, Plan, Row, tell, without_tf32, yes_or_no
from benchmarks.gpu.steppers import Training, do_steps, stepper_of
from benchmarks.models import first_vectors, random_model
from textual_inversion.diffusion.model import StableDiffusion

CASES = {
    "batch 1": Training(),
    "batch 4": Training(batch=4),
    "two buckets": Training(batch=2, buckets=2),
    "accumulation 2": Training(batch=2, passes=2),
    "clip by norm": Training(batch=2, clip="norm"),
    "classic": Training(batch=2, method="classic"),
}
LEAST_COSINE = 0.999  # of the update in bf16, where libraries may choose other kernels for a graph


def rows(plan: Plan) -> Iterator[Row]:
    without_tf32()
    for precision in dict.fromkeys(("fp32", plan.half)):
        tell(f"comparing graph and eager steps in {precision}")
        model = random_model(plan.compared, plan.device, DTYPES[precision])
        with torch.backends.cudnn.flags(deterministic=True):
            for name, training in CASES.items():
                yield _row(plan, model, precision, name, training)


def _row(plan: Plan, model: StableDiffusion, precision: str, name: str, training: Training) -> Row:
    eager, _ = update(plan, model, training, graphed=False)
    graph, failed = update(plan, model, training, graphed=True)
    cosine, difference = closeness(graph, eager)
    good, note = torch.equal(graph, eager) if precision == "fp32" else cosine >= LEAST_COSINE, ""
    if not good and not torch.equal(update(plan, model, training, graphed=False)[0], eager):
        good, note = cosine >= LEAST_COSINE, "eager steps are not repeatable either, so their cosine is judged"
    if failed:
        good, note = False, f"no graph: {failed}"
    row = {"what": f"{plan.compared_steps} steps, graph to eager, {name}", "model": plan.compared.name, "precision": precision}
    figures = {"cosine": f"{cosine:.6f}", "max rel. diff.": f"{difference:.1e}", "ok": yes_or_no(good)}
    return row | {"batch": str(training.batch), **figures, "note": note}


def update(plan: Plan, model: StableDiffusion, training: Training, *, graphed: bool) -> tuple[torch.Tensor, str]:
    """How far the steps move the vectors, fp32 [n, d] on the CPU, and why no graph could be recorded."""
    stepper = stepper_of(model, plan.compared, [training], graphed=graphed)
    do_steps(stepper, plan.compared_steps)
    return stepper.step.vectors.detach().cpu() - first_vectors(plan.compared, training.seed), stepper.graphs.failed
