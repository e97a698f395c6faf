"""Training inside A1111 beside A1111's own trainer: `python -m benchmarks.step_vs_a1111`, on the CPU in fp32.

Both trainers get the same word, checkpoint and pictures through the WebUI's API. They take turns, each in a fresh A1111 process: in a
shared process OpenMP counts the idle threads of the other side, and then puts its own threads to sleep between any two operations
(measured: 0.058 s a step instead of 0.033).

`A1111_DIR` names the WebUI's folder, `A1111_PYTHON` its interpreter when it is not in the `venv`. The benchmark writes nothing into that
folder. Without `--checkpoint` it uses the tiny checkpoint. Like A1111, it uses a `.yaml` beside a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.table import publish, table

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "textual_inversion" / "assets"
TINY = ASSETS / "tiny" / "tiny.safetensors"
PICTURES = ASSETS / "demo" / "pictures"
SIDES = ("ours", "A1111")
Times = dict[tuple[int, str], list[tuple[float, float]]]  # (batch, side) -> seconds of the shorter and the longer run, turn by turn
ARGUMENTS = (
    "--skip-prepare-environment --skip-torch-cuda-test --skip-version-check --use-cpu all --no-half --precision full --no-half-vae "
    "--no-download-sd-model --api"
)
READY = ("Startup time:", "Model loaded in")
START_SECONDS = 300


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_vs_a1111", description="Time training in A1111 beside A1111's own.")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4], help="pictures in a step (default: 1 4; A1111 takes 6 at most)")
    parser.add_argument("--steps", type=int, default=120, help="steps of a run (default: 120)")
    parser.add_argument("--warm-up", type=int, default=20, help="steps of the shorter run that is taken off the longer one (default: 20)")
    parser.add_argument("--checkpoint", type=Path, default=TINY, help="a .safetensors to train on (default: the tiny checkpoint)")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side (default: 128)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the WebUI (default: 2)")
    parser.add_argument("--out", default="", metavar="FILE", help="write the table there too")
    options = parser.parse_args(arguments)
    if not os.environ.get("A1111_DIR"):
        print("A1111_DIR does not name the folder of an A1111; see docs/benchmarks.md.", file=sys.stderr)
        return 2
    times: Times = {(batch, name): [] for batch in options.batches for name in SIDES}
    for turn in range(options.rounds):
        for name in SIDES if turn % 2 == 0 else reversed(SIDES):
            take_a_turn(name, options, times)
    rows = [row(batch, options, times) for batch in options.batches]
    columns = ("batch", "ours, s/step", "A1111, s/step", "times as fast", f"ours, {options.steps} steps", f"A1111, {options.steps} steps")
    publish(f"{where(options)}\n\n{table((*columns, 'times as fast'), rows)}", options.out)
    return 0


def where(options: argparse.Namespace) -> str:
    """What the WebUI runs on."""
    code = "import platform, torch; print(f'torch {torch.__version__}, {platform.system()}, Python {platform.python_version()}')"
    versions = subprocess.run([python(), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    name, size, threads = options.checkpoint.stem, options.size, options.threads
    return f"CPU ({threads} threads), {versions}, checkpoint {name}, {size}² pixels, 4 vectors, fp32, {time.strftime('%Y-%m-%d')}"


def take_a_turn(name: str, options: argparse.Namespace, times: Times) -> None:
    """Start A1111, let one side train, note the seconds of the shorter and of the longer run."""
    with tempfile.TemporaryDirectory(prefix="a1111-") as data, running_a1111(Path(data), options) as url:
        for batch in options.batches:
            side = Side(url, Path(data), batch, options.size)
            side.run(name, 2)  # what is imported and allocated once
            short, long = side.run(name, options.warm_up), side.run(name, options.steps)
            times[batch, name].append((short, long))
            print(f"batch {batch}, {name}: {(long - short) / (options.steps - options.warm_up):.4f} s/step", file=sys.stderr)


def row(batch: int, options: argparse.Namespace, times: Times) -> list[str]:
    """Medians over the turns: seconds of a step, which are what the longer run took more, and of a whole run."""
    more = options.steps - options.warm_up
    alone = [statistics.median((long - short) / more for short, long in times[batch, name]) for name in SIDES]
    whole = [statistics.median(long for _, long in times[batch, name]) for name in SIDES]
    times_as_fast = [f"{theirs / ours:.2f}" for ours, theirs in (alone, whole)]
    return [str(batch), *(f"{s:.3f}" for s in alone), times_as_fast[0], *(f"{s:.1f} s" for s in whole), times_as_fast[1]]


class Side:
    """Runs of either trainer, each on a word of its own, with pictures in batches of `batch`."""

    def __init__(self, url: str, data: Path, batch: int, size: int) -> None:
        self.url, self.data, self.batch, self.size = url, data, batch, size
        self.number = 0

    def run(self, name: str, steps: int) -> float:
        """Seconds of one run, from the request to its answer."""
        self.number += 1
        word = f"b{self.batch}n{self.number}"
        self.post("/textual-inversion/v1/create", name=word, initializer_text="shape", num_vectors=4)
        train: Callable[[str, int], None] = {"ours": self.ours, "A1111": self.theirs}[name]
        begun = time.perf_counter()
        train(word, steps)
        return time.perf_counter() - begun

    def ours(self, word: str, steps: int) -> None:
        body = {"name": word, "images": str(PICTURES), "width": self.size, "height": self.size, "batch_size": self.batch, "steps": steps}
        state = self.post("/textual-inversion/v1/train", **body, csv_every=0, wait=True)["state"]
        if (state["phase"], state["step"]) != ("finished", steps):
            raise RuntimeError(f"ours stopped at step {state['step']}: {state['reason']}")

    def theirs(self, word: str, steps: int) -> None:
        files = {"data_root": str(PICTURES), "log_directory": str(self.data / "logs"), "template_filename": "subject_filewords.txt"}
        off = dict.fromkeys(("varsize", "shuffle_tags", "use_weight", "save_image_with_stored_embedding", "preview_from_txt2img"), False)
        preview = {"prompt": "", "negative_prompt": "", "steps": 20, "sampler_name": "euler", "cfg_scale": 7, "seed": -1}
        body = {
            **files, **off, **{f"preview_{key}": value for key, value in preview.items()},
            "id_task": "", "embedding_name": word, "learn_rate": "0.005", "batch_size": self.batch, "gradient_step": 1, "steps": steps,
            "training_width": self.size, "training_height": self.size, "clip_grad_mode": "disabled", "clip_grad_value": "0.1",
            "tag_drop_out": 0,
            "latent_sampling_method": "once", "create_image_every": 0,
            "preview_width": self.size, "preview_height": self.size,
            "save_embedding_every": 1_000_000,  # with both at 0 it fails, as it has no folder to write its settings to
        }  # fmt: skip
        answer = self.post("/sdapi/v1/train/embedding", **body)["info"]
        if not answer.startswith("train embedding complete") or not answer.endswith("error: None"):
            raise RuntimeError(f"A1111's own trainer said: {answer}")

    def post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=3600) as answer:
            return json.load(answer)


def python() -> str:
    """The WebUI's interpreter."""
    return os.environ.get("A1111_PYTHON") or str(Path(os.environ["A1111_DIR"]) / "venv" / "bin" / "python")


@contextmanager
def running_a1111(data: Path, options: argparse.Namespace) -> Iterator[str]:
    """Address of an A1111 over `data` with the checkpoint and this extension."""
    checkpoints = data / "models" / "Stable-diffusion"
    for folder in (checkpoints, data / "embeddings", data / "extensions"):
        folder.mkdir(parents=True)
    for file in {options.checkpoint, options.checkpoint.with_suffix(".yaml")}:
        if file.is_file():
            (checkpoints / file.name).symlink_to(file.resolve())
    (data / "extensions" / "textual-inversion").symlink_to(ROOT, target_is_directory=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "SD_WEBUI_RESTARTING": "1"}
    environment = {**os.environ, **offline, "OMP_NUM_THREADS": str(options.threads), "PYTHONUNBUFFERED": "1", "COMMANDLINE_ARGS": ""}
    folders = ["--data-dir", str(data), "--models-dir", str(data / "models")]
    with open(data / "log.txt", "wb") as out:
        process = subprocess.Popen(
            [python(), "launch.py", *ARGUMENTS.split(), *folders, "--port", str(port)],
            cwd=os.environ["A1111_DIR"], env=environment, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _wait_until_ready(process, data / "log.txt")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not all(line in (output := log.read_text(encoding="utf-8", errors="replace")) for line in READY):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"A1111 did not start:\n{output[-3000:]}")
        time.sleep(0.3)


if __name__ == "__main__":
    sys.exit(main())
