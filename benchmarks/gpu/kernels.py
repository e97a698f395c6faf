"""How many kernels one eager training step starts, and the ten that take most time, by PyTorch's profiler. On the CPU: operations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.plan import DTYPES, Plan, Row, tell, tidy, wait
from benchmarks.gpu.steppers import RATES, Training, do_steps, stepper_of
from benchmarks.models import random_model

LARGEST, LONGEST_NAME = 10, 90


def rows(plan: Plan) -> Iterator[Row]:
    tell("counting the kernels of a step")
    tidy(plan)
    model = random_model(plan.timed, plan.device, DTYPES[plan.half], draw_on=plan.device)
    stepper = stepper_of(model, plan.timed, [Training()], graphed=False)
    do_steps(stepper, 2)
    stepper.load(stepper.plan([{0: RATES}]))
    wait(plan)
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * plan.is_cuda) as profiler:
        stepper.run(0)
        wait(plan)
    yield from table_of(started(profiler.events(), on_cuda=plan.is_cuda))


def started(events: Any, *, on_cuda: bool) -> dict[str, tuple[int, float]]:
    """Kernel -> how often it was started and its milliseconds in all."""
    found: dict[str, tuple[int, float]] = {}
    for event in events:
        is_kernel = event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        if is_kernel or (not on_cuda and event.device_type == DeviceType.CPU):
            count, milliseconds = found.get(event.name, (0, 0.0))
            microseconds = event.time_range.elapsed_us() if on_cuda else event.self_cpu_time_total
            found[event.name] = count + 1, milliseconds + microseconds / 1000
    return found


def table_of(found: dict[str, tuple[int, float]]) -> Iterator[Row]:
    """All kernels together, then the ten with most milliseconds.

    Raises:
        RuntimeError: none were seen.
    """
    if not found:
        raise RuntimeError("The profiler saw no kernels; another program may be profiling the device.")
    count, total = (sum(each[index] for each in found.values()) for index in range(2))
    yield {"kernel": f"all ({len(found)} different)", "count": str(count), "ms": f"{total:.2f}", "share": "100%"}
    for name, (count, milliseconds) in sorted(found.items(), key=lambda item: -item[1][1])[:LARGEST]:
        shown = name.replace("|", "/")[:LONGEST_NAME]
        yield {"kernel": shown, "count": str(count), "ms": f"{milliseconds:.2f}", "share": f"{milliseconds / max(total, 1e-9):.0%}"}
