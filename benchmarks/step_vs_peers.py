"""Training on the command line beside the trainers of kohya-ss/sd-scripts and OneTrainer: `python -m benchmarks.step_vs_peers`.

Each trainer gets the same checkpoint, the same pictures, batch, precision and rate, and caches its latents. They run one after the
other in processes of their own. The speed is what their progress bars show between the first tenth of the run and its end, by the
clock of this process, so that loading and encoding do not count.

`KOHYA_DIR` and `ONETRAINER_DIR` name the folders of the other trainers, `KOHYA_PYTHON` and `ONETRAINER_PYTHON` their interpreters when
those are not in the folder's `venv`. Nothing is written into the folders. kohya's trainer reads CLIP's tokenizer from the cache of
huggingface_hub, so it must have been there once with a network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.table import publish, table, where

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "textual_inversion" / "assets" / "demo" / "pictures"
WORD, INITIAL, VECTORS, RATE = "zzword", "shape", 4, 0.005
SKIPPED = 0.1  # the share of a run that warms up
COLUMNS = ("trainer", "steps/s", "s/step", "whole run, s", "ours, times as fast", "note")


@dataclass(frozen=True)
class Race:
    """What every trainer does.

    Attributes:
        checkpoint: an SD1 `.safetensors`.
        pictures: folder of pictures with captions in `.txt` files.
        folder: where they may write.
        steps, batch, size: of the run, the batch, the pictures' side in pixels.
        precision: `fp32`, `bf16` or `fp16`.
        device: torch device.
    """

    checkpoint: Path
    pictures: Path
    folder: Path
    steps: int
    batch: int
    size: int
    precision: str
    device: str

    @property
    def files(self) -> list[Path]:
        """The pictures."""
        return sorted(path for path in self.pictures.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))

    @property
    def repeats(self) -> int:
        """How often each picture is shown in an epoch that is at least as long as the run."""
        return -(-self.steps * self.batch // len(self.files))


@dataclass(frozen=True)
class Command:
    """How a trainer is started, and what its lines about steps look like.

    Attributes:
        arguments: interpreter, script and options.
        cwd: where it is started.
        bar: matches a line about a step; its only group is the number of steps done.
    """

    arguments: list[str]
    cwd: Path
    bar: str


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_vs_peers", description="Time training beside other trainers.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="an SD1 .safetensors in the LDM layout")
    parser.add_argument("--images", type=Path, default=PICTURES, help="folder of pictures (default: the demo's)")
    parser.add_argument("--steps", type=int, default=300, help="steps of a run (default: 300)")
    parser.add_argument("--batch", type=int, default=1, help="pictures in a step (default: 1)")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side (default: 512)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16", help="(default: bf16)")
    parser.add_argument("--device", default="cuda", help="torch device (default: cuda)")
    parser.add_argument("--out", default="", metavar="FILE", help="write the table there too")
    options = parser.parse_args(arguments)
    found = {name: variable for name, variable in PEERS.items() if os.environ.get(f"{variable}_DIR")}
    if not found:
        print("Set KOHYA_DIR or ONETRAINER_DIR to the folder of the trainer that is to be compared.", file=sys.stderr)
        return 2
    results: dict[str, tuple[float, float] | str] = {}
    for name in ("ours", *found):
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            race = Race(
                options.checkpoint.resolve(), options.images.resolve(), Path(folder), options.steps, options.batch, options.size,
                options.precision, options.device,
            )  # fmt: skip
            results[name] = attempt(name, race)
    title = f"{where(options.device)}, {options.checkpoint.stem}, {options.size}², {options.precision}, batch {options.batch}"
    publish(f"{title}, {options.steps} steps\n\n{table(COLUMNS, list(rows(results)))}", options.out)
    return 1 if any(isinstance(result, str) for result in results.values()) else 0


def rows(results: dict[str, tuple[float, float] | str]) -> Iterator[list[str]]:
    """A row for each trainer: its speed, or why it failed."""
    ours = results.get("ours")
    for name, result in results.items():
        if isinstance(result, str):
            yield [name, "", "", "", "", result.replace("|", "/")]
            continue
        rate, seconds = result
        ratio = f"{ours[0] / rate:.2f}" if name != "ours" and ours and not isinstance(ours, str) else ""
        yield [name, f"{rate:.2f}", f"{1 / rate:.4f}", f"{seconds:.1f}", ratio, ""]


def attempt(name: str, race: Race) -> tuple[float, float] | str:
    """Steps a second and seconds of the whole run of a trainer, or why it failed."""
    print(f"training with {name}", file=sys.stderr, flush=True)
    try:
        return watch(COMMANDS[name](race), race)
    except (OSError, RuntimeError) as error:
        return str(error)


def watch(command: Command, race: Race) -> tuple[float, float]:
    """Run a trainer and read its lines; returns steps a second and seconds of the whole run.

    Raises:
        RuntimeError: it failed, or said too little about its steps.
    """
    begun = time.perf_counter()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command.arguments, cwd=command.cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    readings: list[tuple[float, int]] = []
    last = ""
    try:
        for line in lines_of(process):
            last = line.strip() or last
            if found := re.search(command.bar, line):
                readings.append((time.perf_counter() - begun, int(found[1])))
        status = process.wait()
    finally:
        process.kill()
    if status:
        raise RuntimeError(f"it ended with status {status}: {last[:200]}")
    return rate_of(readings, race.steps), time.perf_counter() - begun


def lines_of(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Lines as they come; a progress bar ends its own with a carriage return."""
    assert process.stdout is not None
    rest = b""
    while chunk := os.read(process.stdout.fileno(), 4096):
        *whole, rest = re.split(rb"[\r\n]", rest + chunk)
        for line in whole:
            yield line.decode("utf-8", "replace")
    yield rest.decode("utf-8", "replace")


def rate_of(readings: list[tuple[float, int]], steps: int) -> float:
    """Steps a second between the first reading after the warm-up and the last one.

    Args:
        readings: (second, steps done).

    Raises:
        RuntimeError: fewer than two such readings.
    """
    warm = [(second, done) for second, done in readings if done >= SKIPPED * steps]
    if len(warm) < 2 or warm[-1][1] <= warm[0][1]:
        raise RuntimeError("it printed too few lines about its steps; try more steps")
    return (warm[-1][1] - warm[0][1]) / (warm[-1][0] - warm[0][0])


# how each trainer is started


def ours(race: Race) -> Command:
    """The package's own command."""
    program = [sys.executable, "-m", "textual_inversion.cli"]
    place = ["--embeddings", str(race.folder), "--checkpoint", str(race.checkpoint)]
    create = [*program, "create", WORD, "--init", INITIAL, "--vectors", str(VECTORS), *place]
    subprocess.run(create, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    counts = {"steps": race.steps, "batch-size": race.batch, "width": race.size, "height": race.size, "learning-rate": RATE}
    options = [word for name, value in counts.items() for word in (f"--{name}", str(value))]
    how = ["--method", "classic", "--images", str(race.pictures), "--device", race.device, "--precision", race.precision]
    return Command([*program, "train", WORD, *how, *options, *place], ROOT, rf"step (\d+) of {race.steps}\b")


def kohya(race: Race) -> Command:
    """kohya-ss/sd-scripts' `train_textual_inversion.py`, with cached latents and PyTorch's attention."""
    shown = race.folder / "pictures" / f"{race.repeats}_{WORD}"  # its folders say how often their pictures are shown
    shown.mkdir(parents=True)
    for path in race.files:
        shutil.copy(path, shown)
    options = {
        "pretrained_model_name_or_path": race.checkpoint, "train_data_dir": shown.parent, "output_dir": race.folder / "out",
        "output_name": WORD, "token_string": WORD, "init_word": INITIAL, "num_vectors_per_token": VECTORS,
        "resolution": f"{race.size},{race.size}", "train_batch_size": race.batch, "max_train_steps": race.steps, "learning_rate": RATE,
        "optimizer_type": "AdamW", "mixed_precision": "no" if race.precision == "fp32" else race.precision, "seed": 0,
        "save_model_as": "safetensors", "max_data_loader_n_workers": 1,
    }  # fmt: skip
    switches = ["--cache_latents", "--sdpa", "--use_object_template", "--persistent_data_loader_workers"]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    folder = Path(os.environ["KOHYA_DIR"])
    return Command([python_of("KOHYA"), "train_textual_inversion.py", *words, *switches], folder, rf"(\d+)/{race.steps} \[")


def onetrainer(race: Race) -> Command:
    """OneTrainer's `scripts/train.py` with a configuration of our own."""
    path = race.folder / "config.json"
    path.write_text(json.dumps(onetrainer_config(race)), encoding="utf-8")
    folder = Path(os.environ["ONETRAINER_DIR"])
    # its bar of an epoch ends with the epoch, which is as long as the pictures times their repeats
    return Command([python_of("ONETRAINER"), "scripts/train.py", "--config-path", str(path)], folder, r"step: .* (\d+)/\d+ \[")


def onetrainer_config(race: Race) -> dict[str, object]:
    """What differs from OneTrainer's own defaults: one epoch, no previews, no backups, no checkpointing."""
    folder = race.folder
    prompts = folder / "prompts.txt"
    prompts.write_text("a photo of <embedding>\n", encoding="utf-8")
    kind = {"fp32": "FLOAT_32", "bf16": "BFLOAT_16", "fp16": "FLOAT_16"}[race.precision]
    part = {"weight_dtype": kind, "gradient_checkpointing": False}  # which is on by default, and slower
    concept = {
        "name": WORD, "path": str(race.pictures), "balancing": float(race.repeats), "balancing_strategy": "REPEATS", "__version": 2,
        "image": {"enable_crop_jitter": False}, "text": {"prompt_source": "concept", "prompt_path": str(prompts)},
    }  # fmt: skip
    never = {f"{what}_unit": "NEVER" for what in ("sample_after", "backup_after", "save_every")}
    return {
        "__version": 11, "training_method": "EMBEDDING", "model_type": "STABLE_DIFFUSION_15", "base_model_name": str(race.checkpoint),
        "workspace_dir": str(folder / "workspace"), "cache_dir": str(folder / "cache"), "tensorboard": False,
        "output_model_destination": str(folder / "word.safetensors"), "output_model_format": "SAFETENSORS",
        "concepts": [concept], "aspect_ratio_bucketing": False, "latent_caching": True, "resolution": str(race.size),
        "epochs": 1, "batch_size": race.batch, "learning_rate": RATE, "learning_rate_warmup_steps": 0, "clip_grad_norm": None,
        "train_device": race.device, "train_dtype": kind, "optimizer": {"optimizer": "ADAMW"},
        "unet": part, "text_encoder": part, "vae": {"weight_dtype": "FLOAT_32"},
        "embedding": {"placeholder": "<embedding>", "token_count": VECTORS, "initial_embedding_text": INITIAL},
        "backup_before_save": False, **never,
    }  # fmt: skip


def python_of(variable: str) -> str:
    """A trainer's interpreter."""
    folder = "Scripts" if os.name == "nt" else "bin"
    return os.environ.get(f"{variable}_PYTHON") or str(Path(os.environ[f"{variable}_DIR"]) / "venv" / folder / "python")


PEERS = {"kohya": "KOHYA", "OneTrainer": "ONETRAINER"}  # trainer -> prefix of its variables
COMMANDS: dict[str, Callable[[Race], Command]] = {"ours": ours, "kohya": kohya, "OneTrainer": onetrainer}


if __name__ == "__main__":
    sys.exit(main())
