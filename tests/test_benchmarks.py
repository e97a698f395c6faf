"""The benchmarks run, and the one for CUDA devices with torch and safetensors alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import library_scan, preprocess
from benchmarks.gpu import main
from benchmarks.step_vs_diffusers import CASES, diffusers_step, our_step
from benchmarks.table import table
from textual_inversion.library import EmbeddingLibrary

ROOT = Path(__file__).resolve().parent.parent
# refuses what a machine with only torch and safetensors does not have
ALONE = """
import sys
for name in ("PIL", "numpy", "regex", "gradio", "transformers", "diffusers", "tqdm", "huggingface_hub"):
    sys.modules[name] = None
from benchmarks.gpu import TINY, Plan, run
rows = run(Plan("cpu", checked=(), timed=TINY, cases=(("fp32", 1),), seconds=0.01, matrix=64))
assert float(rows[-1]["s/step"]) > 0, rows
"""


def test_the_gpu_benchmark_needs_torch_and_safetensors_only() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is at hand")
def test_without_a_cuda_device_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "No CUDA device" in said.err


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--quick", "--out", str(tmp_path / "table.md")]) == 0
    written = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert written == capsys.readouterr().out
    assert "| no" not in written


@pytest.mark.gpu
def test_the_training_step_is_right_on_this_device() -> None:
    from benchmarks.gpu import Plan, check, replace

    rows = [row for sizes in Plan("cuda").checked for row in check(replace(Plan("cuda"), falling_steps=100), sizes)]
    assert [row for row in rows if row["ok"] != "yes"] == []


@pytest.mark.parametrize("side", [our_step, diffusers_step])
def test_both_sides_of_the_comparison_step(side: object) -> None:
    step = side(CASES["tiny"][0], 1)  # type: ignore[operator]
    losses = [step() for _ in range(2)]
    assert all(0 < loss < 10 for loss in losses)


def test_both_sides_of_the_scan_read_every_file(tmp_path: Path) -> None:
    library_scan.make_files(tmp_path, 100)
    for side in (library_scan.ours, library_scan.as_a1111):
        *figures, listed = side(tmp_path)
        assert listed == 100
        assert all(figure >= 0 for figure in figures[:4])
    assert len({path.suffix for path in tmp_path.rglob("*.*")}) == 4
    assert [entry.reason for entry in EmbeddingLibrary([tmp_path]).entries() if not entry.usable] == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by Linux alone")
def test_our_side_of_the_crops_makes_every_picture(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    grain = np.random.default_rng(0).normal(0, 5, (1024, 1024, 3)).astype(np.int8)
    for number in range(3):
        image = preprocess.photograph(Image.effect_noise((200, 200), 90).convert("RGB"), number, 0.5, grain)
        assert abs(image.width * image.height - 500_000) < 2000
        image.save(tmp_path / "in" / f"{number}.jpg")
    told = preprocess.ours(tmp_path / "in", tmp_path / "out")
    assert told["pictures"] == 3
    assert 0 < told["seconds"] < 60
    assert told["peak"] > 10


def test_the_other_side_of_the_crops_needs_nothing_of_ours() -> None:
    source = (ROOT / "benchmarks" / "a1111_crops.py").read_text(encoding="utf-8")
    assert "import textual_inversion" not in source
    assert "from textual_inversion" not in source


def test_tables_are_markdown() -> None:
    assert table(("a", "long one"), [["1", "2"]]) == "| a | long one |\n| - | -------- |\n| 1 | 2        |"
