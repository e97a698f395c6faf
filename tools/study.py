"""Compares ways of training on the drawn world: `python -m tools.study --out study.jsonl --ways directional classic`.

Every way learns every concept with every seed and batch size from six drawn pictures. The learned words are judged by two numbers: the
share of pictures that show the concept, and the share that follow the rest of the prompt. The last judged step is the end of the run, which
may come earlier with `early_stop=true`. Results are appended to a file as they come;
a study that was interrupted goes on from there. A way is a method with settings, such as `directional:norm_factor=1,learning_rate=0.1`.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from textual_inversion import formats
from textual_inversion.demo.judge import judge, settings_for
from textual_inversion.demo.world import SIZE, Scene, draw, random_scene
from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
from textual_inversion.settings.schema import setting_of
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.embedding_file import create_embedding
from textual_inversion.training.trainer import train

WORD = "zorb"
CHOSEN = (
    ("star", "purple", "dotted"),
    ("moon", "yellow", "striped"),
    ("heart", "green", "checkered"),
    ("cross", "white", "plain"),
    ("diamond", "orange", "dotted"),
)
_POSITIONS = ("centre", "left", "centre", "right", "centre", "right")
_REPORTED = 30  # seconds between two lines of progress


@dataclass(frozen=True)
class Trial:
    """One run: a way of training, a concept as (shape, colour, pattern), a seed and a batch size."""

    way: str
    concept: tuple[str, str, str]
    seed: int
    batch_size: int
    vectors: int
    words: str
    steps: int
    judged_at: tuple[int, ...]
    device: str
    precision: str

    @property
    def key(self) -> str:
        """Text that names the trial."""
        return json.dumps(asdict(self))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results, one JSON object a line; those that are there stay")
    parser.add_argument("--ways", nargs="+", default=["pulled", "classic"], help="METHOD or METHOD:setting=value,setting=value")
    parser.add_argument("--chosen", type=int, default=5, help="how many of the five chosen concepts (default: 5)")
    parser.add_argument("--random", type=int, default=0, help="how many concepts drawn at random (default: 0)")
    parser.add_argument("--draw-seed", type=int, default=1, help="seed of the random concepts (default: 1)")
    parser.add_argument("--seeds", type=int, default=1, help="training seeds for each (default: 1)")
    parser.add_argument("--batches", type=int, nargs="+", default=[8], help="batch sizes (default: 8)")
    parser.add_argument("--vectors", type=int, nargs="+", default=[4], help="numbers of vectors (default: 4)")
    parser.add_argument("--words", nargs="+", default=["shape"], help="initial words; `true` = the concept's own (default: shape)")
    parser.add_argument("--at", type=int, nargs="+", default=[50, 100, 150], help="steps at which words are judged (default: 50 100 150)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--precision", default="fp32", help="compute type (default: fp32)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    options = parser.parse_args(arguments)
    trials = list(trials_of(options))
    known = results_of(options.out)
    waiting = [trial for trial in trials if trial.key not in known]
    run_all(waiting, options.out, options.workers)
    print(table(trials, results_of(options.out)))
    return 0


def trials_of(options: argparse.Namespace) -> Iterator[Trial]:
    """All trials of a study, in an order that gives every way its first results early."""
    rng = random.Random(options.draw_seed)
    drawn = [random_scene(rng) for _ in range(options.random)]
    concepts = [*CHOSEN[: options.chosen], *((scene.shape, scene.colour, scene.pattern) for scene in drawn)]
    judged = tuple(sorted(options.at))
    axes = range(options.seeds), options.batches, options.vectors, options.words, concepts, options.ways
    for seed, batch, vectors, words, concept, way in product(*axes):
        yield Trial(way, concept, seed, batch, vectors, words, judged[-1], judged, options.device, options.precision)


def run_all(trials: list[Trial], out: Path, workers: int) -> None:
    """Run trials in processes of their own and append their results."""
    if not trials:
        return
    begun = told = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(trials)), initializer=torch.set_num_threads, initargs=(1,)) as pool, out.open("a") as file:
        for number, result in enumerate(pool.imap_unordered(run, trials), start=1):
            file.write(json.dumps(result) + "\n")
            file.flush()
            if time.monotonic() - told > _REPORTED or number == len(trials):
                told = time.monotonic()
                print(f"{number} of {len(trials)} trials, {told - begun:.0f} s", file=sys.stderr)


def run(trial: Trial) -> dict[str, Any]:
    """Train and judge; returns step -> (concept, prompt following), and the seconds of training."""
    concept = Scene(*trial.concept, background="white")
    model = _model(trial.device, trial.precision)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_pictures(concept, folder / "pictures")
        path = create_embedding(model, WORD, words_of(trial), trial.vectors, folder)
        every = math.gcd(*trial.judged_at)
        config = replace(config_of(trial), images=str(folder / "pictures"), copy_every=every, log_dir=str(folder / "log"))
        begun = time.monotonic()
        train(config, model, folder)
        seconds = time.monotonic() - begun
        scores = {}
        for step in trial.judged_at:
            copy = folder / "log" / f"{WORD}-{step}.safetensors"  # of a run that has not ended before
            word = formats.load(copy if step < trial.steps and copy.exists() else path)
            found = judge(model, WORD, {WORD: word}, concept, settings_for(concept))
            scores[step] = (found.concept, found.prompt_following)
        norm = float(torch.cat(list(word.vectors.values()), dim=1).norm(dim=1).mean()) / model.word_norm
    return {"key": trial.key, "scores": scores, "seconds": seconds, "norm": norm, "ended": word.provenance.step}


@lru_cache(maxsize=1)
def _model(device: str, precision: str) -> StableDiffusion:
    return load_checkpoint(device=device, precision=precision)


def config_of(trial: Trial) -> TrainingConfig:
    """The settings of a trial, without its folders."""
    method, _, written = trial.way.partition(":")
    changes: dict[str, Any] = {}
    for part in filter(None, written.split(",")):
        name, _, value = part.partition("=")
        declared = setting_of(TrainingConfig, name)
        changes[name] = value if declared.type is str else declared.clean(value)
    sizes = {"width": SIZE, "height": SIZE}
    return TrainingConfig(
        WORD, "", method=method, steps=trial.steps, seed=trial.seed, **{"batch_size": trial.batch_size, **sizes, **changes}
    )


def words_of(trial: Trial) -> str:
    """The initial words of a trial. Of the true ones as many as there are vectors: the shape is always kept, and written last."""
    return " ".join(list(reversed(trial.concept[: trial.vectors]))) if trial.words == "true" else trial.words


def draw_pictures(concept: Scene, folder: Path) -> None:
    """Six pictures of the concept on backgrounds and at positions of their own, with captions that name only those."""
    folder.mkdir(parents=True)
    rng = random.Random("/".join((concept.shape, concept.colour, concept.pattern)))
    grounds = rng.sample([setting.background for setting in settings_for(concept)[::3]], len(_POSITIONS))
    for index, (ground, position) in enumerate(zip(grounds, _POSITIONS), start=1):
        drawn = random_scene(rng, background=ground, colour=concept.colour)
        draw(replace(drawn, shape=concept.shape, pattern=concept.pattern, position=position)).save(folder / f"{index}.png")
        place = "" if position == "centre" else f"on the {position}, "
        (folder / f"{index}.txt").write_text(f"{place}{ground} background\n", encoding="utf-8")


def results_of(path: Path) -> dict[str, dict[str, Any]]:
    """Key of a trial -> its result, of those in a file."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row["key"]: row for row in rows}


def table(trials: list[Trial], results: dict[str, dict[str, Any]]) -> str:
    """Mean and worst of both numbers for each way, batch size and number of vectors, as a markdown table."""
    groups: dict[tuple[str, int, int, str], list[dict[str, Any]]] = {}
    for trial in trials:
        if trial.key in results:
            groups.setdefault((trial.way, trial.batch_size, trial.vectors, trial.words), []).append(results[trial.key])
    lines = [
        "| way | batch | vectors | words | runs | ended | step | concept | worst | following | worst | below .85 | norm |",
        "|" + "---|" * 13,
    ]
    for (way, batch, vectors, words), rows in groups.items():
        for step in rows[0]["scores"]:
            concepts, follows = zip(*(row["scores"][step] for row in rows))
            low = sum(value < 0.85 for value in concepts)
            figures = f"{mean(concepts):.3f} | {min(concepts):.2f} | {mean(follows):.3f} | {min(follows):.2f} | {low}"
            ended, norm = mean(row.get("ended", int(step)) for row in rows), mean(row["norm"] for row in rows)
            lines.append(f"| {way} | {batch} | {vectors} | {words} | {len(rows)} | {ended:.0f} | {step} | {figures} | {norm:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
