"""Trains, kills the training at system calls that change files, lets the next run go on, and counts what was lost.

Run it as a program: `python tests/crash/kill_training.py [KILLS]`. It needs Linux and a C compiler. It prints its figures as JSON.
Each run is a forked child. The journal is written after each step and the embedding's file after each second one, so that kills meet both.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
STEPS, FIRST = 8, 2
NEVER = 10**9


@dataclass
class Figures:
    """What the kills did.

    Attributes:
        lost: steps that were reported and had to be done again, for each kill.
        broken: what was not as promised; empty is good.
    """

    calls: int = 0
    kills: int = 0
    lost: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def show(self) -> dict[str, Any]:
        lost = sorted(self.lost) or [0]
        figures = {"calls": self.calls, "kills": self.kills, "lost_median": lost[len(lost) // 2], "lost_worst": lost[-1]}
        return {**figures, "broken": self.broken}


class Trial:
    """A folder with an embedding, pictures and a log, and the model that all runs share."""

    def __init__(self, folder: Path) -> None:
        import torch
        from PIL import Image

        from tests.support.checkpoints import write_checkpoint
        from textual_inversion.diffusion.model import load_checkpoint
        from textual_inversion.settings.training import TrainingConfig
        from textual_inversion.training.embedding_file import create_embedding

        torch.set_num_threads(1)
        self.home = folder
        self.model = load_checkpoint(write_checkpoint(folder / "random.safetensors"), device="cpu")
        pictures = folder / "pictures"
        pictures.mkdir()
        for colour in ("red", "green"):
            Image.new("RGB", (64, 64), colour).save(pictures / f"{colour}.png")
        self.config = TrainingConfig(
            "thing",
            str(pictures),
            steps=STEPS,
            width=64,
            height=64,
            batch_size=1,
            method="classic",
            learning_rate="0.01",
            device="cpu",
            copy_every=3,
            save_optimizer=True,
        )
        create_embedding(self.model, "thing", "small cat", 2, folder / "start")
        self.reported = mmap.mmap(-1, 16)  # shared with the children: the last step that was reported, and the first step of the run

    def train(self, folder: Path, kill_at: int, steps: int = STEPS) -> list[str]:
        """One run, in a child; the messages that it sent."""
        from dataclasses import replace

        from textual_inversion.training import journal, run
        from textual_inversion.training.events import Message, Started, StepDone
        from textual_inversion.training.trainer import train

        journal.SECONDS, messages = 0.0, []
        saves = iter(range(NEVER))
        run.SAVE_SECONDS = 0.0

        def listen(event: Any) -> None:
            if isinstance(event, Started):
                self.reported[8:16] = event.first_step.to_bytes(8, "little")
            if isinstance(event, StepDone):
                self.reported[0:8] = event.step.to_bytes(8, "little")
                run.SAVE_SECONDS = 0.0 if next(saves) % 2 else 1e9
            if isinstance(event, Message):
                messages.append(event.text)

        config = replace(self.config, steps=steps, log_dir=str(folder / "log"))
        shim = ctypes.CDLL(None)
        shim.ti_left.restype = ctypes.c_long
        shim.ti_arm(ctypes.c_long(kill_at))
        train(config, self.model, folder / "embeddings", listener=listen)
        calls = kill_at - shim.ti_left()
        shim.ti_arm(ctypes.c_long(0))
        return [*messages, f"calls {calls}"]

    def number(self, place: int) -> int:
        return int.from_bytes(self.reported[8 * place : 8 * place + 8], "little")


def in_child(work: Callable[[], list[str]], answer: Path) -> int:
    """The status of a child that does `work` and leaves its result in the file `answer`."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        answer.write_text(json.dumps(work()), encoding="utf-8")
        status = 0
    except BaseException:  # noqa: BLE001  a forked child must not go on with its parent's work
        answer.write_text(json.dumps([traceback.format_exc()]), encoding="utf-8")
    finally:
        os._exit(status)


def one_kill(trial: Trial, kill_at: int, figures: Figures) -> None:
    """Kill a run before one of its calls, let the next one go on, and look at what is there."""
    from textual_inversion import formats

    folder, answer = trial.home / f"kill-{kill_at}", trial.home / "answer.json"
    shutil.copytree(trial.home / "start", folder / "embeddings")
    trial.reported[0:16] = bytes(16)
    status = in_child(lambda: trial.train(folder, kill_at), answer)
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        figures.broken.append(f"call {kill_at}: not killed, but status {status}: {answer.read_text(encoding='utf-8')[-300:]}")
        return
    figures.kills += 1
    done, path = trial.number(0), folder / "embeddings" / "thing.safetensors"
    try:
        formats.load(path)
    except Exception as error:  # noqa: BLE001  every damage counts
        figures.broken.append(f"call {kill_at}: {error}")
        return
    status = in_child(lambda: resumed(trial, folder), answer)
    messages = json.loads(answer.read_text(encoding="utf-8"))
    figures.lost.append(max(0, done - trial.number(1)))
    figures.broken += [f"call {kill_at}: {problem}" for problem in problems(folder, status, messages, figures.lost[-1])]
    shutil.rmtree(folder)


def resumed(trial: Trial, folder: Path) -> list[str]:
    from textual_inversion import files

    files._YOUNG_SECONDS = 0.0  # a test does not wait until what was left is old
    return trial.train(folder, NEVER, STEPS + FIRST)


def problems(folder: Path, status: int, messages: list[str], lost: int) -> list[str]:
    """What is not as promised after the next run."""
    if status:
        return [f"the next run failed: {messages[-1][-300:]}"]
    found = [f"{lost} steps were lost"] if lost > 1 else []
    found += [message for message in messages if "begins anew" in message or "cannot" in message]
    left = {path.name for path in (folder / "embeddings").iterdir()} - {"thing.safetensors", "thing.safetensors.optim"}
    found += [f"left behind: {name}" for name in sorted(left)]
    numbers = [line.partition(",")[0] for line in (folder / "log" / "loss.csv").read_text(encoding="utf-8").splitlines()[1:]]
    if numbers != [str(number) for number in range(1, STEPS + FIRST + 1)]:
        found.append(f"the table has the steps {' '.join(numbers)}")
    return found


def measure(kills: int) -> Figures:
    """Kill a run at `kills` of its calls, spread evenly."""
    figures = Figures()
    with tempfile.TemporaryDirectory() as name:
        trial = Trial(Path(name).resolve())
        whole, answer = trial.home / "whole", trial.home / "answer.json"
        shutil.copytree(trial.home / "start", whole / "embeddings")
        status = in_child(lambda: trial.train(whole, NEVER), answer)
        messages = json.loads(answer.read_text(encoding="utf-8"))
        if status:
            figures.broken.append(messages[-1])
            return figures
        figures.calls = int(messages[-1].split()[1])
        kills = min(kills, figures.calls)
        for number in range(kills):
            one_kill(trial, 1 + number * figures.calls // kills, figures)
    return figures


def with_shim() -> None:
    """Start this program again with the shim loaded."""
    folder = tempfile.mkdtemp()
    shim = Path(folder) / "kill_shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(Path(__file__).with_name("kill_shim.c")), "-ldl"], check=True)
    done = subprocess.run([sys.executable, *sys.argv], env={**os.environ, "LD_PRELOAD": str(shim), "TI_KILL_SHIM": folder})
    shutil.rmtree(folder)
    sys.exit(done.returncode)


if __name__ == "__main__":
    if not os.environ.get("TI_KILL_SHIM"):
        with_shim()
    result = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
    print(json.dumps(result.show(), indent=1))
    sys.exit(1 if result.broken else 0)
