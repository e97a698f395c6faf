"""The benchmarks run, and the one for CUDA devices with torch and safetensors alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import library_scan, preprocess, step_vs_peers
from benchmarks.gpu import checks, diffusers_loop, graphs, kernels, sampler, sdxl, steps, together, whole_run
from benchmarks.gpu.__main__ import PARTS, main, run, shown
from benchmarks.gpu.plan import MissingError, Plan
from benchmarks.gpu.steppers import Training, do_steps, stepper_of
from benchmarks.models import TINY, TINY_XL, first_vectors, random_model
from benchmarks.step_vs_diffusers import CASES, diffusers_step, our_step
from benchmarks.table import table
from textual_inversion.library import EmbeddingLibrary

MINI = replace(TINY, name="tiny, 64²", pixels=64)
ROOT = Path(__file__).resolve().parent.parent
# refuses what a machine with only torch and safetensors does not have
ALONE = """
import sys
for name in ("PIL", "numpy", "regex", "gradio", "transformers", "diffusers", "tqdm", "huggingface_hub"):
    sys.modules[name] = None
from dataclasses import replace
from benchmarks.gpu.__main__ import main, run
import torch
from benchmarks.gpu.plan import Plan
from benchmarks.models import TINY, TINY_XL
torch.set_num_threads(1)
mini = replace(TINY, pixels=64)
plan = replace(Plan.quick("cpu"), cases=(("fp32", 1),), seconds=0.01, matrix=64, picture_steps=1, timed=mini, together=mini,
               large=replace(TINY_XL, pixels=64), embeddings=2, compared_steps=2)
texts = [text for text, good in run(plan, ["steps", "sdxl", "together", "sampler", "run", "diffusers"]) if good]
assert len(texts) == 6, texts
assert "training step, eager" in texts[0], texts
assert all(word in texts[-2] for word in ("not run", "Pillow", "numpy", "regex")), texts
assert "not run" in texts[-1] and "diffusers" in texts[-1], texts
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
    status = main(["--device", "cpu", "--quick", "--out", str(tmp_path / "table.md")])
    written = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert written == capsys.readouterr().out
    assert status == 0, written
    assert "| no " not in written


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Even smaller than the quick one."""
    models = {"checked": (MINI,), "compared": MINI, "together": MINI, "timed": MINI, "large": replace(TINY_XL, pixels=64)}
    # three steps, because Adam's first takes a value that bf16 rounds to the other sign as a whole step
    counts = {"checked_steps": 3, "falling_steps": 10, "compared_steps": 2, "embeddings": 2, "picture_steps": 2, "matrix": 64}
    return replace(Plan.quick("cpu"), **models, **counts, seconds=0.02)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other beside other work take many times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_checks_pass_on_the_cpu(plan: Plan) -> None:
    rows = list(checks.rows(plan))
    assert [row["ok"] for row in rows] == ["yes"] * 4


def test_graph_and_eager_steps_are_compared_in_every_case(plan: Plan) -> None:
    rows = list(graphs.rows(plan))
    assert [row["ok"] for row in rows] == ["yes"] * len(graphs.CASES)
    assert {row["batch"] for row in rows} == {"1", "2", "4"}


def test_a_graph_that_is_not_there_or_not_equal_is_no_success(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = torch.randn(4, 64)
    answers = {True: (-moved, ""), False: (moved, "")}
    monkeypatch.setattr(graphs, "update", lambda *_, graphed: answers[graphed])
    assert {row["ok"] for row in graphs.rows(plan)} == {"no"}
    answers[True] = moved, "out of memory"
    assert {(row["ok"], row["note"]) for row in graphs.rows(plan)} == {("no", "no graph: out of memory")}


def test_steps_are_timed_with_the_share_of_the_processor(plan: Plan) -> None:
    fused, rate, *timed = steps.rows(plan)
    assert "CUDA" in fused["note"]
    assert float(rate["TFLOP/s"]) > 0
    assert [row["batch"] for row in timed] == ["1", "2"]
    assert all(float(row["s/step"]) > 0 and 0 < float(row["host's share"].rstrip("%")) <= 100 for row in timed)


def test_the_stepper_of_the_benchmark_trains() -> None:
    stepper = stepper_of(random_model(MINI, "cpu", torch.float32), MINI, [Training(batch=2, buckets=2)])
    busy = do_steps(stepper, 12)
    assert 0 < busy < 60
    assert not torch.equal(stepper.step.vectors.detach(), first_vectors(MINI, 0))


def test_sdxl_sampler_and_embeddings_together_run(plan: Plan) -> None:
    (row,) = sdxl.rows(plan)
    assert float(row["s/step"]) > 0
    (row,) = sampler.rows(plan)
    assert float(row["seconds"]) > 0
    alone, at_once = together.rows(plan)
    assert float(alone["seconds"]) > 0
    assert at_once["ok"] == "yes"


def test_the_largest_kernels_come_first(plan: Plan) -> None:
    everything, *largest = kernels.rows(plan)
    times = [float(row["ms"]) for row in largest]
    assert times == sorted(times, reverse=True)
    assert len(times) == kernels.LARGEST
    assert int(everything["count"]) > sum(int(row["count"]) for row in largest)


def test_diffusers_loop_runs(plan: Plan) -> None:
    pytest.importorskip("diffusers")
    (row,) = diffusers_loop.rows(plan)
    assert float(row["s/step"]) > 0


@pytest.mark.slow
def test_a_whole_run_writes_its_file(plan: Plan) -> None:
    first, second = whole_run.rows(plan)
    for row in (first, second):
        assert float(row["seconds"]) > float(row["steps, s"]) > 0
        assert float(row["steps/s"]) > 0


def test_a_part_that_fails_does_not_cost_the_others(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(plan: Plan) -> Iterator[dict[str, str]]:
        yield {"what": "done before"}
        raise RuntimeError("CUDA error: an illegal | access\nand more")

    def missing(plan: Plan) -> Iterator[dict[str, str]]:
        raise MissingError("It needs Pillow.")
        yield {}

    monkeypatch.setitem(PARTS, "steps", ("Steps", broken))
    monkeypatch.setitem(PARTS, "run", ("Run", missing))
    (failed, failed_good), (left, left_good) = run(plan, ["steps", "run"])
    assert "done before" in failed
    assert "RuntimeError: CUDA error: an illegal / access" in failed
    assert "not run: It needs Pillow." in left
    assert (failed_good, left_good) == (False, True)
    ((late, good),) = run(plan, ["steps"], limit=-1)
    assert "left out" in late
    assert good


def test_a_table_has_the_columns_that_are_filled() -> None:
    rows = [{"note": "", "s/step": "1", "what": "a"}, {"what": "b", "ok": "yes", "model": "tiny"}]
    assert shown(rows).splitlines()[0].split() == ["|", "what", "|", "model", "|", "s/step", "|", "ok", "|"]


@pytest.mark.gpu
@pytest.mark.parametrize("part", [checks, graphs, together, sdxl])
def test_the_checks_pass_on_this_device(part: Any) -> None:
    rows = list(part.rows(replace(Plan.quick("cuda"), compared_steps=50, falling_steps=60, checked_steps=20)))
    assert [row for row in rows if row.get("ok") == "no"] == []


@pytest.mark.parametrize("side", [our_step, diffusers_step])
def test_both_sides_of_the_comparison_step(side: object) -> None:
    step = side(CASES["tiny"][0], 1)  # type: ignore[operator]
    losses = [step() for _ in range(2)]
    assert all(0 < loss < 10 for loss in losses)


# says as much as a trainer with a progress bar
PEER = """
import sys, time
assert sys.argv[1:], sys.argv
for done in range(61):
    print(f"steps: {done}%| | {done}/60 [00:01<00:02]", end="\\r", flush=True)
    time.sleep(0.01)
"""


def test_other_trainers_are_timed_by_their_progress_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train_textual_inversion.py").write_text(PEER, encoding="utf-8")
    monkeypatch.setenv("KOHYA_DIR", str(tmp_path))
    monkeypatch.setenv("KOHYA_PYTHON", sys.executable)
    race = step_vs_peers.Race(tmp_path / "a.safetensors", step_vs_peers.PICTURES, tmp_path, 60, 1, 512, "bf16", "cuda")
    command = step_vs_peers.kohya(race)
    assert "--mixed_precision bf16" in " ".join(command.arguments)
    assert len(list((tmp_path / "pictures" / "10_zzword").iterdir())) == 6
    rate, seconds = step_vs_peers.watch(command, race)
    assert 10 < rate < 110
    assert seconds > 54 / rate


def test_a_trainer_that_fails_has_a_row_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = step_vs_peers.Command([sys.executable, "-c", "raise SystemExit('no such | model')"], tmp_path, r"(\d+)")
    monkeypatch.setitem(step_vs_peers.COMMANDS, "kohya", lambda race: command)
    race = step_vs_peers.Race(tmp_path / "a.safetensors", step_vs_peers.PICTURES, tmp_path, 60, 1, 512, "bf16", "cuda")
    result = step_vs_peers.attempt("kohya", race)
    assert result == "it ended with status 1: no such | model"
    shown = list(step_vs_peers.rows({"ours": (20.0, 9.0), "OneTrainer": (10.0, 9.0), "kohya": result}))
    assert [row[4] for row in shown] == ["", "2.00", ""]
    assert shown[2][5].endswith("no such / model")


def test_the_table_of_trainers_has_a_row_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = step_vs_peers.Command([sys.executable, "-c", PEER, "run"], tmp_path, r"(\d+)/60 \[")
    monkeypatch.setattr(step_vs_peers, "COMMANDS", dict.fromkeys(("ours", "kohya"), lambda race: command))
    monkeypatch.setenv("KOHYA_DIR", str(tmp_path))
    monkeypatch.delenv("ONETRAINER_DIR", raising=False)
    assert step_vs_peers.main(["--checkpoint", "a.safetensors", "--steps", "60", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["ours", "kohya"]


def test_onetrainer_gets_a_whole_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONETRAINER_DIR", str(tmp_path))
    race = step_vs_peers.Race(tmp_path / "a.safetensors", step_vs_peers.PICTURES, tmp_path, 100, 4, 512, "bf16", "cuda")
    command = step_vs_peers.onetrainer(race)
    config = json.loads(Path(command.arguments[-1]).read_text(encoding="utf-8"))
    assert (config["training_method"], config["batch_size"], config["concepts"][0]["balancing"]) == ("EMBEDDING", 4, 67.0)
    assert re.search(command.bar, "step:  10%|# | 30/300 [00:03<00:27, 9.87it/s, loss=0.1]")[1] == "30"  # type: ignore[index]


def test_without_other_trainers_it_says_what_to_set(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KOHYA_DIR", "ONETRAINER_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert step_vs_peers.main(["--checkpoint", "a.safetensors"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "KOHYA_DIR" in said


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
