"""Compares focal-point crops of photographs with A1111's: `python -m benchmarks.preprocess`, on the CPU.

The photographs are those inside scikit-image and scikit-learn, cropped, enlarged and coloured anew until there are enough of them, as
JPEG files in a temporary folder. Each side runs in a process of its own over the same files; they run in the order A B B A.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.table import publish, table, where

#: Photographs: module -> names; all of them show real things, one a face.
PHOTOGRAPHS = {"skimage.data": ("astronaut", "cat", "coffee", "rocket", "camera"), "sklearn.datasets": ("china.jpg", "flower.jpg")}
SHAPES = ((4, 3), (3, 4), (3, 2), (4, 3))
SIDE = 512


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preprocess", description="Time focal-point crops of photographs.")
    parser.add_argument("--pictures", type=int, default=500, help="how many photographs (default: 500)")
    parser.add_argument("--megapixels", type=float, default=12.0, help="size of each (default: 12)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side (default: 2)")
    parser.add_argument(
        "--a1111", default=os.environ.get("A1111_DIR", ""), metavar="DIR", help="its folder (default: A1111_DIR; none: ours alone)"
    )
    parser.add_argument("--python", default="", metavar="FILE", help="A1111's Python (default: the one in its venv)")
    parser.add_argument("--folder", default="", metavar="DIR", help="keep the photographs there, and use those that are there")
    parser.add_argument("--out", default="", metavar="FILE", help="write the table there too")
    parser.add_argument("--worker", nargs=2, metavar=("SOURCE", "DESTINATION"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(ours(*map(Path, options.worker))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(options.folder or temporary) / "photographs"
        make_photographs(source, options.pictures, options.megapixels)
        load = os.getloadavg()[0]
        results = list(take_turns(source, Path(temporary), options))
    columns = ("focal crops", "seconds", "processor seconds", "pictures/s", "peak MB", "faces looked for")
    rows = [row(side, [figures for name, figures in results if name == side]) for side in dict(results)]
    title = f"{options.pictures} photographs of {options.megapixels:g} megapixels to {SIDE}², load {load:.1f} at the start"
    publish(f"{where('cpu')}; {title}\n\n{table(columns, rows)}", options.out)
    return 0


def row(side: str, turns: list[dict[str, float]]) -> list[str]:
    """Medians of one side's turns."""
    seconds, processor, peak = (statistics.median(turn[key] for turn in turns) for key in ("seconds", "processor", "peak"))
    faces = "yes" if turns[0]["faces"] else "no"
    return [side, f"{seconds:.1f}", f"{processor:.1f}", f"{turns[0]['pictures'] / seconds:.1f}", f"{peak:.0f}", faces]


def take_turns(source: Path, temporary: Path, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """(side, its figures) for each turn."""
    sides = {"textual_inversion": [sys.executable, "-m", "benchmarks.preprocess", "--worker", str(source)]}
    if options.a1111:
        python = options.python or str(Path(options.a1111) / "venv" / "bin" / "python")
        sides["A1111"] = [python, str(Path(__file__).with_name("a1111_crops.py")), options.a1111, str(source)]
    for turn in range(options.rounds):
        for side in list(sides)[:: -1 if turn % 2 else 1]:
            target = temporary / "out"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            command = [*sides[side], str(target), *([str(SIDE)] if side == "A1111" else [])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            yield side, json.loads(done.stdout.splitlines()[-1])


def ours(source: Path, destination: Path) -> dict[str, float]:
    """Figures of a run with the settings that A1111's script has."""
    from benchmarks.a1111_crops import peak_memory
    from textual_inversion.pictures.salience import why_no_faces
    from textual_inversion.preprocess.run import PreprocessConfig, preprocess

    config = PreprocessConfig(str(source), str(destination), width=SIDE, height=SIDE, focal_crop=True)
    begin, processor = time.perf_counter(), time.process_time()
    report = preprocess(config)
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    pictures = len(report.written)
    return {"pictures": pictures, "seconds": seconds, "processor": processor, "peak": peak_memory(), "faces": not why_no_faces()}


def photographs() -> list[Image.Image]:
    """The originals, RGB."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    pictures = [getattr(skimage.data, name)() for name in PHOTOGRAPHS["skimage.data"]]
    return [Image.fromarray(pixels).convert("RGB") for pixels in [*pictures, *map(load_sample_image, PHOTOGRAPHS["sklearn.datasets"])]]


def make_photographs(folder: Path, count: int, megapixels: float) -> None:
    """Write `count` JPEG files of about `megapixels` into `folder`; existing files stay."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(count) if not (folder / f"{number:04}.jpg").exists()]
    if not missing:
        return
    originals = photographs()
    grain = np.random.default_rng(0).normal(0, 5, (1024, 1024, 3)).astype(np.int8)

    def make(number: int) -> None:
        photograph(originals[number % len(originals)], number, megapixels, grain).save(folder / f"{number:04}.jpg", quality=90)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, missing))


def photograph(original: Image.Image, number: int, megapixels: float, grain: np.ndarray) -> Image.Image:
    """A variation of an original: another part of it, other colours, a camera's grain."""
    rng = np.random.default_rng(number)
    across, down = SHAPES[number % len(SHAPES)]
    unit = (megapixels * 1e6 / (across * down)) ** 0.5
    size = (round(across * unit), round(down * unit))
    part = min(original.width / across, original.height / down) * rng.uniform(0.75, 1)
    left, top = rng.uniform(0, original.width - across * part), rng.uniform(0, original.height - down * part)
    image = original.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + across * part, top + down * part))
    image = ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.15))).enhance(rng.uniform(0.7, 1.3))
    pixels = np.asarray(image).astype(np.int16)
    pixels += np.tile(grain, (size[1] // 1024 + 1, size[0] // 1024 + 1, 1))[: size[1], : size[0]]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    sys.exit(main())
