"""The loop of diffusers' textual inversion example on the same device, in the precision that its `--mixed_precision bf16` means."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from benchmarks.gpu.plan import DTYPES, MissingError, Plan, Row, peak, seconds_of, speed, tell, tidy


def rows(plan: Plan) -> Iterator[Row]:
    if missing := [name for name in ("diffusers", "transformers") if importlib.util.find_spec(name) is None]:
        raise MissingError(f"The example's loop needs {' and '.join(missing)}.")
    from benchmarks.step_vs_diffusers import diffusers_step

    precision = "bf16" if plan.half == "bf16" else "fp32"  # in fp16 the example scales the loss, which this loop does not
    for batch in plan.diffusers_batches:
        tell(f"timing diffusers' example, {precision}, batch {batch}")
        tidy(plan)
        step = diffusers_step(plan.timed, batch, plan.device, DTYPES[precision])
        seconds = seconds_of(plan, step)
        row = {"what": "diffusers' example", "model": plan.timed.name, "precision": precision, "batch": str(batch)}
        yield row | speed(plan, plan.timed, seconds, batch) | peak(plan)
