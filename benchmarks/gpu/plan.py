"""What a run of the benchmark does, how it measures, and the rows that it makes."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from benchmarks.models import SD15, SDXL, SMALL, TINY, TINY_XL, Sizes

TFLOP_PER_SAMPLE = {SD15.name: 1.67, SDXL.name: 14.3}  # forward and backward of an embedding-only step, by a FLOP counter
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Row = dict[str, str]


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        device: torch device that is checked.
        checked: models whose steps are compared with the CPU's.
        compared: model whose steps from a graph are compared with eager ones.
        together: model that trains several embeddings.
        timed: model whose steps, pictures and whole run are timed.
        large: UNet that is timed alone.
        cases: (precision, batch) of each timed row.
        diffusers_batches: batches of diffusers' loop.
        seconds: about how long each row is timed.
        matrix: side of the matrices whose product gives the device's rate.
        checked_steps: steps of a comparison with the CPU's.
        falling_steps: steps over which the loss must fall.
        compared_steps: steps of a comparison of the device with itself.
        embeddings: trained together.
        picture_steps: sampler steps of a picture.
        run_steps: steps of the run from command to file.
    """

    device: str
    checked: tuple[Sizes, ...] = (TINY, SMALL)
    compared: Sizes = TINY
    together: Sizes = SMALL
    timed: Sizes = SD15
    large: Sizes = SDXL
    cases: tuple[tuple[str, int], ...] = (("bf16", 1), ("bf16", 4), ("bf16", 8), ("fp16", 1))
    diffusers_batches: tuple[int, ...] = (1, 4)
    seconds: float = 3.0
    matrix: int = 8192
    checked_steps: int = 20
    falling_steps: int = 60
    compared_steps: int = 50
    embeddings: int = 8
    picture_steps: int = 20
    run_steps: int = 400

    @classmethod
    def quick(cls, device: str) -> Plan:
        """Tiny sizes only, to show that the benchmark itself works."""
        models: dict[str, Any] = {"checked": (TINY,), "together": TINY, "timed": TINY, "large": TINY_XL}
        counts = {"checked_steps": 3, "falling_steps": 40, "compared_steps": 6, "embeddings": 3, "picture_steps": 3, "run_steps": 20}
        cases = (("fp32", 1), ("fp32", 2))
        return replace(cls(device), **models, **counts, cases=cases, diffusers_batches=(1,), seconds=0.3, matrix=256)

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return torch.device(self.device).type == "cuda"

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that the device supports. Cards before Ampere only emulate bf16, whatever `is_bf16_supported` says."""
        with_bf16 = not self.is_cuda or bool(torch.version.hip) or torch.cuda.get_device_capability(self.device)[0] >= 8
        return tuple(name for name in DTYPES if name != "bf16" or with_bf16)

    @property
    def half(self) -> str:
        """The half precision that the device is best at; fp32 on the CPU, where many processors only emulate the others."""
        if not self.is_cuda:
            return "fp32"
        return "bf16" if "bf16" in self.precisions else "fp16"

    @property
    def timed_cases(self) -> dict[str, list[int]]:
        """Precision -> batches; a precision that the device lacks becomes the half one that it has."""
        found: dict[str, list[int]] = {}
        for precision, batch in self.cases:
            batches = found.setdefault(precision if precision in self.precisions else self.half, [])
            if batch not in batches:
                batches.append(batch)
        return found


class MissingError(Exception):
    """A part needs something that is not installed; its sentence says what."""


def tell(text: str) -> None:
    """Say on stderr what is being done."""
    print(text, file=sys.stderr, flush=True)


def wait(plan: Plan) -> None:
    """Wait for the device."""
    if plan.is_cuda:
        torch.cuda.synchronize(plan.device)


def tidy(plan: Plan) -> None:
    """Free what nothing uses any more, and measure the peak of the memory from here."""
    gc.collect()
    if plan.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(plan.device)


def peak(plan: Plan) -> Row:
    """The cell of the peak of the device's memory since `tidy`; none on the CPU."""
    return {"peak GiB": f"{torch.cuda.max_memory_allocated(plan.device) / 2**30:.2f}"} if plan.is_cuda else {}


def seconds_of(plan: Plan, work: Callable[[], object], *, warm_up: int = 3, longest: float | None = None) -> float:
    """Mean seconds of `work` after a warm-up, repeated for about `plan.seconds` (or `longest`, if that is less), the waiting included."""
    for _ in range(warm_up):
        work()
    once = _measure(plan, work, 1)
    repeats = max(3, min(1000, int(min(plan.seconds, longest or plan.seconds) / max(once, 1e-6))))
    return _measure(plan, work, repeats)


def _measure(plan: Plan, work: Callable[[], object], repeats: int) -> float:
    wait(plan)
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(plan)
    return (time.perf_counter() - begin) / repeats


@cache
def matmul_rate(plan: Plan) -> float:
    """TFLOP/s of a matrix product in half precision, as a measure of the device's limit."""
    side = plan.matrix
    tell(f"timing a matrix product of {side}³")
    a, b = (torch.randn(side, side, device=plan.device, dtype=DTYPES[plan.half]) for _ in range(2))
    return 2 * side**3 / 1e12 / seconds_of(plan, lambda: a @ b, longest=1.0)


def speed(plan: Plan, model: Sizes, seconds: float, batch: int = 1) -> Row:
    """The cells of a step's speed, beside the device's rate where the model's work is known."""
    row = {"s/step": f"{seconds:.4f}", "steps/s": figure(1 / seconds)}
    if work := TFLOP_PER_SAMPLE.get(model.name):
        achieved = work * batch / seconds
        row |= {"TFLOP/s": figure(achieved), "of matmul": f"{achieved / matmul_rate(plan):.0%}"}
    return row


def figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def yes_or_no(good: bool) -> str:
    """The cell of a check."""
    return "yes" if good else "no"


def first_line(error: BaseException) -> str:
    """What an error says, as a cell."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}".replace("|", "/")[:200] if text else type(error).__name__


def without_tf32() -> None:
    """Turn off TF32: it rounds to 10 bits, too coarse for a comparison in fp32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
