"""A whole run from command to file: `create` and `train` as a user starts them, on a checkpoint of random weights and six pictures."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.gpu.plan import MissingError, Plan, Row, figure, tell, tidy
from benchmarks.models import Sizes, fill
from textual_inversion.diffusion.checkpoint import TEXT, UNET, VAE
from textual_inversion.diffusion.clip import CLIPTextEncoder
from textual_inversion.diffusion.noise import NoiseSchedule
from textual_inversion.diffusion.unet import UNet
from textual_inversion.diffusion.vae import VAE as AutoEncoder

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "textual_inversion" / "assets" / "demo" / "pictures"
NEEDED = {"PIL": "Pillow", "numpy": "numpy", "regex": "regex"}
LONGEST = 60  # seconds of one command; then it is ended
_RATE = re.compile(r"step \d+ of \d+,.* ([\d.]+) steps/s")


@dataclass
class Told:
    """What a command printed: (seconds after its start, line), and its seconds in all."""

    lines: list[tuple[float, str]]
    seconds: float

    def first(self, word: str) -> float:
        """When the first line with `word` came.

        Raises:
            RuntimeError: there is none.
        """
        for second, line in self.lines:
            if word in line:
                return second
        raise RuntimeError(f"The command printed no line with {word!r}, but: {self.text[-500:]}")

    @property
    def steps_per_second(self) -> float:
        """As the last line about a step says."""
        return float(_RATE.findall(self.text)[-1])

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(line for _, line in self.lines)


def rows(plan: Plan) -> Iterator[Row]:
    if missing := [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]:
        raise MissingError(f"A whole run needs {', '.join(missing)}.")
    with tempfile.TemporaryDirectory(prefix="whole-run-") as name:
        folder = Path(name)
        tell("writing a checkpoint")
        checkpoint = write_checkpoint(folder / "random.safetensors", plan.timed, plan.device)
        tidy(plan)
        for turn in ("first", "second"):
            if turn == "first":
                forget(checkpoint)
            yield from _turn(plan, folder, checkpoint, turn)


def _turn(plan: Plan, folder: Path, checkpoint: Path, turn: str) -> Iterator[Row]:
    tell(f"a whole run of {plan.run_steps} steps, {turn} time")
    place = ["--embeddings", str(folder / turn), "--checkpoint", str(checkpoint)]
    (folder / turn).mkdir()
    created = told(["create", "word", "--init", "shape", "--vectors", "4", *place])
    side = str(plan.timed.pixels)
    counts = ["--steps", str(plan.run_steps), "--batch-size", "1", "--width", side, "--height", side]
    trained = told(["train", "word", "--images", str(PICTURES), "--device", plan.device, *counts, *place])
    if not any((folder / turn).iterdir()):
        raise RuntimeError("The run wrote no embedding.")
    loaded, steps = trained.first("Encoding"), plan.run_steps / trained.steps_per_second
    encoded = trained.first("finished") - loaded - steps
    row = {"what": f"create and train {plan.run_steps} steps, {turn} time", "model": plan.timed.name, "batch": "1"}
    parts = {"create": created.seconds, "start, load": loaded, "encode": encoded, "steps": steps}
    parts |= {"end": trained.seconds - trained.first("finished")}
    whole = {"seconds": f"{created.seconds + trained.seconds:.1f}"}
    yield row | whole | {f"{part}, s": f"{seconds:.1f}" for part, seconds in parts.items()} | {"steps/s": figure(trained.steps_per_second)}


def told(arguments: list[str]) -> Told:
    """Run a command of the package and note when it prints what.

    Raises:
        RuntimeError: it failed, or was ended because it took too long.
    """
    begun = time.perf_counter()
    command = [sys.executable, "-m", "textual_inversion.cli", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8")
    assert process.stdout is not None
    end = threading.Timer(LONGEST, process.kill)
    end.start()
    try:
        lines = [(time.perf_counter() - begun, line.rstrip()) for line in process.stdout]
        status = process.wait()
    finally:
        end.cancel()
        process.kill()
    if status:
        raise RuntimeError(f"{arguments[0]} ended with status {status}: {lines[-1][1] if lines else ''}")
    return Told(lines, time.perf_counter() - begun)


def write_checkpoint(path: Path, sizes: Sizes, device: str) -> Path:
    """A checkpoint of random weights in the LDM layout, fp16; they are drawn on `device`."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {UNET: UNet(sizes.unet), VAE: AutoEncoder(sizes.vae), TEXT: CLIPTextEncoder(sizes.clip)}
    tensors = {"alphas_cumprod": NoiseSchedule.scaled_linear().alphas_cumprod}
    for seed, (prefix, part) in enumerate(parts.items()):
        fill(part, torch.Generator(device).manual_seed(seed), device, torch.float16)
        tensors |= {prefix + key: value.cpu().contiguous() for key, value in part.state_dict().items()}
    save_file(tensors, path)
    return path


def forget(path: Path) -> None:
    """Put a file out of the system's cache, where the system can do that."""
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
