"""Checks and times the training step on any CUDA device: `python -m benchmarks.gpu`; needs only torch and safetensors.

Legend: b batch, n vectors, d width.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from benchmarks.models import SD15, SMALL, TINY, Sizes, first_vectors, make_batch, random_model
from benchmarks.table import publish, table, where
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.step import TrainingStep

TFLOP_PER_SAMPLE = {SD15.name: 1.67}  # forward and backward of an embedding-only step, by a FLOP counter
COMPARED_STEPS, FALLING_STEPS, LEARNING_RATE = 20, 200, 0.005
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_COSINE = {"fp32": 0.999, "bf16": 0.98, "fp16": 0.99}  # of the update, to the CPU's in fp32
COLUMNS = ("what", "model", "precision", "batch", "s/step", "steps/s", "TFLOP/s", "of matmul", "peak GiB", "cosine", "max rel. diff.", "ok")


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        device: torch device that is checked.
        checked: models whose steps are compared.
        timed: model whose steps are timed.
        cases: (precision, batch) of each timed row.
        seconds: about how long each row is timed.
        matrix: side of the matrices whose product gives the device's rate.
        falling_steps: steps over which the loss must fall.
    """

    device: str
    checked: tuple[Sizes, ...] = (TINY, SMALL)
    timed: Sizes = SD15
    cases: tuple[tuple[str, int], ...] = (("bf16", 1), ("bf16", 4), ("bf16", 8), ("fp16", 1))
    seconds: float = 8.0
    matrix: int = 8192
    falling_steps: int = FALLING_STEPS

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return torch.device(self.device).type == "cuda"

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that the device supports. Cards before Ampere only emulate bf16, whatever `is_bf16_supported` says."""
        with_bf16 = not self.is_cuda or bool(torch.version.hip) or torch.cuda.get_device_capability(self.device)[0] >= 8
        return tuple(name for name in DTYPES if name != "bf16" or with_bf16)


Row = dict[str, str]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Check and time the training step on a CUDA device.")
    parser.add_argument("--device", default="cuda", help="torch device (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes only: shows that the benchmark itself works")
    parser.add_argument("--out", default="", metavar="FILE", help="write the table there too")
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        print("No CUDA device is at hand: run this where one is, or try the code with --device cpu --quick.", file=sys.stderr)
        return 2
    plan = Plan(options.device)
    if options.quick:
        plan = replace(plan, checked=(TINY,), timed=TINY, cases=(("fp32", 1), ("bf16", 2)), seconds=1.0, matrix=512, falling_steps=40)
    rows = run(plan)
    text = table(COLUMNS, [[row.get(column, "") for column in COLUMNS] for row in rows])
    publish(f"{where(options.device)}\n\n{text}", options.out)
    return 1 if any(row.get("ok") == "no" for row in rows) else 0


def run(plan: Plan) -> list[Row]:
    """All rows; also reports each row on stderr at once."""
    rows = [row for sizes in plan.checked for row in check(plan, sizes)]
    half = "bf16" if "bf16" in plan.precisions else "fp16"
    rate = matmul_rate(plan, DTYPES[half])
    rows.append({"what": f"matmul {plan.matrix}³", "precision": half, "TFLOP/s": _figure(rate)})
    for precision, batch in dict.fromkeys((p if p in plan.precisions else half, batch) for p, batch in plan.cases):
        print(f"timing {plan.timed.name}, {precision}, batch {batch}", file=sys.stderr)
        rows.append(timed_row(plan, precision, batch, rate))
    return rows


def check(plan: Plan, sizes: Sizes) -> list[Row]:
    """Compare vectors after 20 steps with the CPU's in fp32; check that no step waits for the device and that the loss falls."""
    print(f"checking {sizes.name}", file=sys.stderr)
    without_tf32()
    reference = update(sizes, "cpu", torch.float32)
    rows = []
    for precision in plan.precisions:
        cosine, difference = closeness(update(sizes, plan.device, DTYPES[precision]), reference)
        good = cosine >= LEAST_COSINE[precision]
        figures = {"cosine": f"{cosine:.6f}", "max rel. diff.": f"{difference:.1e}", "ok": _yes_or_no(good)}
        rows.append({"what": f"{COMPARED_STEPS} steps, to CPU fp32", "model": sizes.name, "precision": precision, "batch": "2", **figures})
    before, after = losses_of_one_batch(plan, sizes)
    what = f"loss {before:.4f} to {after:.4f} in {plan.falling_steps} steps"
    rows.append({"what": what, "model": sizes.name, "precision": "fp32", "batch": "2", "ok": _yes_or_no(after < before)})
    if plan.is_cuda:
        rows.append({"what": "a step never waits", "model": sizes.name, "precision": "fp16", "ok": _yes_or_no(never_waits(plan, sizes))})
    return rows


def without_tf32() -> None:
    """Turn off TF32: it rounds to 10 bits, too coarse for the comparison in fp32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def start(sizes: Sizes, device: str, dtype: torch.dtype, draw_on: str = "cpu") -> TrainingStep:
    """A step at its beginning."""
    model = random_model(sizes, device, dtype, draw_on=draw_on)
    return TrainingStep(model, first_vectors(sizes), TrainingConfig("word", "pictures"))


def update(sizes: Sizes, device: str, dtype: torch.dtype) -> torch.Tensor:
    """How far 20 steps, each with a batch of its own, move the vectors: fp32 [n, d] on the CPU."""
    step = start(sizes, device, dtype)
    for seed in range(COMPARED_STEPS):
        batch = make_batch(sizes, 2, seed, device)
        step.run(lambda batch=batch: batch, LEARNING_RATE, 1.0)
    return step.vectors.detach().cpu() - first_vectors(sizes)


def closeness(ours: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Cosine of two updates, and their largest difference relative to the largest number."""
    cosine = F.cosine_similarity(ours.flatten().double(), reference.flatten().double(), dim=0)
    return float(cosine), float((ours - reference).abs().max() / reference.abs().max())


def losses_of_one_batch(plan: Plan, sizes: Sizes) -> tuple[float, float]:
    """Loss of one fixed batch at the start and after the steps."""
    step, batch = start(sizes, plan.device, torch.float32), make_batch(sizes, 2, 0, plan.device)
    losses = [step.run(lambda: batch, LEARNING_RATE, 1.0)[0] for _ in range(plan.falling_steps)]
    return float(losses[0]), float(losses[-1])


def never_waits(plan: Plan, sizes: Sizes) -> bool:
    """Whether a step runs without a host-device sync, in fp16 where the loss is scaled too."""
    step, batch = start(sizes, plan.device, torch.float16), make_batch(sizes, 2, 0, plan.device)
    step.run(lambda: batch, LEARNING_RATE, 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run(lambda: batch, LEARNING_RATE, 1.0)
    except RuntimeError as error:
        print(f"a step waits for the device: {error}", file=sys.stderr)
        return False
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True


def seconds_of(plan: Plan, work: Callable[[], object], *, warm_up: int = 5) -> float:
    """Mean seconds of `work` after a warm-up, repeated for about `plan.seconds`; CUDA events measure on the device."""
    for _ in range(warm_up - 1):
        work()
    repeats = max(3, min(1000, int(plan.seconds / max(_measure(plan, work, 1), 1e-6))))
    return _measure(plan, work, repeats)


def _measure(plan: Plan, work: Callable[[], object], repeats: int) -> float:
    if not plan.is_cuda:
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - begin) / repeats
    torch.cuda.synchronize(plan.device)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(repeats):
        work()
    last.record()
    torch.cuda.synchronize(plan.device)
    return first.elapsed_time(last) / 1000 / repeats


def matmul_rate(plan: Plan, dtype: torch.dtype) -> float:
    """TFLOP/s of a matrix product, as a measure of the device's limit."""
    side = plan.matrix
    a, b = (torch.randn(side, side, device=plan.device, dtype=dtype) for _ in range(2))
    quick = replace(plan, seconds=min(plan.seconds, 2.0))
    return 2 * side**3 / 1e12 / seconds_of(quick, lambda: a @ b)


def timed_row(plan: Plan, precision: str, batch_size: int, rate: float) -> Row:
    """Seconds of a step beside the device's rate, and the peak of its memory."""
    row = {"what": "training step", "model": plan.timed.name, "precision": precision, "batch": str(batch_size)}
    try:
        seconds, peak = time_step(plan, DTYPES[precision], batch_size)
    except torch.cuda.OutOfMemoryError:
        return row | {"s/step": "out of memory"}
    row |= {"s/step": f"{seconds:.4f}", "steps/s": f"{1 / seconds:.2f}", "peak GiB": f"{peak:.2f}" if peak else ""}
    if work := TFLOP_PER_SAMPLE.get(plan.timed.name):
        achieved = work * batch_size / seconds
        row |= {"TFLOP/s": _figure(achieved), "of matmul": f"{achieved / rate:.0%}"}
    return row


def time_step(plan: Plan, dtype: torch.dtype, batch_size: int) -> tuple[float, float]:
    """Seconds of one step, and the peak of the device's memory in GiB with the model but without a VAE (0 on the CPU)."""
    if plan.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(plan.device)
    step = start(plan.timed, plan.device, dtype, draw_on=plan.device)
    batch = make_batch(plan.timed, batch_size, 0, plan.device)
    seconds = seconds_of(plan, lambda: step.run(lambda: batch, LEARNING_RATE, 1.0))
    return seconds, torch.cuda.max_memory_allocated(plan.device) / 2**30 if plan.is_cuda else 0.0


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _yes_or_no(good: bool) -> str:
    return "yes" if good else "no"


if __name__ == "__main__":
    sys.exit(main())
