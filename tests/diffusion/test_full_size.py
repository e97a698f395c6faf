"""A whole SD1.5-shaped checkpoint of random weights: how long it takes to load and what five steps need of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints import write_checkpoint
from textual_inversion.diffusion.clip import CLIPConfig
from textual_inversion.diffusion.unet import UNetConfig
from textual_inversion.diffusion.vae import VAEConfig

ROOT = Path(__file__).resolve().parents[2]
# in a process of its own, as only that has a peak of its own
TRAIN = """
import json, resource, sys, time
import torch
from textual_inversion.diffusion.conditioning import VectorTable
from textual_inversion.diffusion.model import load_checkpoint
from textual_inversion.embedding import Embedding
from textual_inversion.training.data.batches import Batch
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.step import TrainingStep

begin = time.perf_counter()
model = load_checkpoint(sys.argv[1], device="cpu")
seconds = time.perf_counter() - begin
with torch.no_grad():
    mean, _ = model.vae.encode_moments(torch.rand(1, 3, 256, 256) * 2 - 1)
vectors = torch.randn(4, 768) * 0.01
table = VectorTable.of({"word": Embedding("word", {"clip_l": vectors})}, {"clip_l": 768}, "cpu")
step = TrainingStep(model, vectors, TrainingConfig("word", "pictures"))
prompts = model.conditioner.tokenize(["a photo of a word"], table)
batch = lambda: Batch(mean * 0.18, torch.randn_like(mean), torch.randint(1000, (1,)), prompts)
losses = [float(step.run(batch, 0.005, 1.0)[0]) for _ in range(5)]
moved = float((step.vectors - vectors).abs().max())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": seconds, "peak": peak, "losses": losses, "moved": moved, "family": model.family}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("full") / "sd15.safetensors"
    yield write_checkpoint(path, unet=UNetConfig(), vae=VAEConfig(), clip=CLIPConfig())
    path.unlink()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
def test_it_loads_in_10_seconds_and_trains_in_8_gib(checkpoint: Path) -> None:
    assert checkpoint.stat().st_size == pytest.approx(2.13e9, rel=0.01)
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(checkpoint)], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["family"] == "SD1"
    assert found["seconds"] < 10
    assert found["peak"] * (1 if sys.platform == "linux" else 1 / 1024) < 8  # macOS counts in bytes
    assert all(0 < loss < 100 for loss in found["losses"])
    assert found["moved"] > 0
