"""Compares a library's scans with A1111, which loads every file: `python -m benchmarks.library_scan`, on the CPU.

Each side runs in a fresh process over the same files in a temporary folder, all of them in the page cache.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch

from benchmarks.table import publish, table, where

#: Share in hundredths -> who writes such files.
MIX = {"a1111": 45, "kohya": 35, "sdxl": 10, "diffusers": 7, "picture": 3}
VECTORS = (1, 2, 4, 8, 16)
FOLDERS = 20


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.library_scan", description="Time the scans of a folder of embeddings.")
    parser.add_argument("--files", type=int, default=10_000, help="how many embeddings (default: 10000)")
    parser.add_argument("--out", default="", metavar="FILE", help="write the table there too")
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps({"ours": ours, "a1111": as_a1111}[options.worker[0]](Path(options.worker[1]))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), options.files)
        for path in Path(folder).rglob("*.*"):
            path.read_bytes()  # into the page cache, so that neither side reads the disk
        rows = [[name, *ask(side, folder)] for side, name in (("ours", "EmbeddingLibrary"), ("a1111", "load all, sha256 each"))]
    columns = (
        f"{options.files} embeddings",
        "first scan, s",
        "processor, s",
        "next scan, s",
        "after one new file, s",
        "memory, MB",
        "listed",
    )
    publish(f"{where('cpu')}\n\n{table(columns, rows)}", options.out)
    return 0


def ask(side: str, folder: str) -> list[str]:
    """One side's figures, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.library_scan", "--worker", side, folder]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    first, processor, following, new, memory, listed = json.loads(answer)
    return [f"{first:.2f}", f"{processor:.2f}", f"{following:.3f}", f"{new:.2f}", f"{memory:.0f}", str(listed)]


# the two sides


def ours(folder: Path) -> list[float]:
    from textual_inversion.library import EmbeddingLibrary

    library = EmbeddingLibrary([folder], {"clip_l": 768})
    before = resident()
    processor = time.process_time()
    first = seconds(library.rescan)
    processor = time.process_time() - processor
    following = min(seconds(library.rescan) for _ in range(3))
    memory = resident() - before
    kohya(folder / "new.safetensors", 0)
    new = seconds(library.rescan)
    (folder / "new.safetensors").unlink()
    return [first, processor, following, new, memory, len(library.entries()) - 1]


def as_a1111(folder: Path) -> list[float]:
    """A1111 keeps every vector. It reads all files again after any change of the folder; otherwise it checks only the folder's date."""
    import PIL.Image  # noqa: F401  loaded before the clock starts, as in a WebUI
    import safetensors.torch  # noqa: F401

    before = resident()
    embeddings: list[object] = []

    def scan() -> None:
        embeddings[:] = [load_as_a1111(path) for path in sorted(folder.rglob("*.*"))]

    processor = time.process_time()
    first = seconds(scan)
    processor = time.process_time() - processor
    return [first, processor, seconds(folder.stat), seconds(scan), resident() - before, len(embeddings)]


def load_as_a1111(path: Path) -> tuple[object, str]:
    """All tensors of a file, and its hash."""
    from PIL import Image
    from safetensors.torch import load_file

    data: object
    if path.suffix == ".png":
        with Image.open(path) as picture:
            data = json.loads(base64.b64decode(picture.text["sd-ti-embedding"]), object_hook=as_tensor)
    elif path.suffix == ".safetensors":
        data = load_file(path)
    else:
        data = torch.load(path, map_location="cpu", weights_only=False)  # noqa: TID251  files of this benchmark, read as A1111 does
    return data, hashlib.sha256(path.read_bytes()).hexdigest()


def as_tensor(item: dict[str, object]) -> object:
    return torch.tensor(item["TORCHTENSOR"]) if "TORCHTENSOR" in item else item


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def resident() -> float:
    """MB of memory that this process holds now."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


# the files


def make_files(folder: Path, count: int) -> None:
    """`count` embeddings of the mixture in `folder` and subfolders of it."""
    makers: dict[str, tuple[Callable[[Path, int], None], str]] = {
        "a1111": (a1111, ".pt"),
        "kohya": (kohya, ".safetensors"),
        "sdxl": (sdxl, ".safetensors"),
        "diffusers": (diffusers, ".bin"),
        "picture": (picture, ".png"),
    }
    kinds = [kind for kind, share in MIX.items() for _ in range(share)]
    for index in range(count):
        make, ending = makers[kinds[index * 37 % 100]]  # 37 shares no factor with 100: every kind in its share, mixed
        place = folder / f"folder-{index % FOLDERS}" if index % 2 else folder
        place.mkdir(exist_ok=True)
        make(place / f"embedding-{index:05}{ending}", index)


def rows(index: int, width: int = 768) -> torch.Tensor:
    """Vectors [n, width] that differ from file to file."""
    generator = torch.Generator().manual_seed(index)
    return torch.randn(VECTORS[index % len(VECTORS)], width, generator=generator)


def a1111_tree(index: int) -> dict[str, object]:
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": rows(index)},
        "name": f"embedding-{index:05}",
        "step": index,
        "sd_checkpoint": "6ce0161689",
        "sd_checkpoint_name": "v1-5-pruned-emaonly",
    }


def a1111(path: Path, index: int) -> None:
    torch.save(a1111_tree(index), path)


def kohya(path: Path, index: int) -> None:
    from safetensors.torch import save_file

    save_file({"emb_params": rows(index).half()}, path, {"format": "pt", "ss_steps": str(index), "ss_output_name": path.stem})


def sdxl(path: Path, index: int) -> None:
    from safetensors.torch import save_file

    save_file({"clip_l": rows(index), "clip_g": rows(index, 1280)}, path)


def diffusers(path: Path, index: int) -> None:
    torch.save({f"<embedding-{index:05}>": rows(index)[0]}, path)


def picture(path: Path, index: int) -> None:
    """A picture of a preview's size with A1111's text chunk."""
    tree = {**a1111_tree(index), "string_to_param": {"*": {"TORCHTENSOR": rows(index).tolist()}}}
    chunk = b"tEXtsd-ti-embedding\0" + base64.b64encode(json.dumps(tree).encode())
    head, tail = _plain_picture()
    path.write_bytes(head + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + tail)


def _plain_picture(cached: list[bytes] = []) -> tuple[bytes, bytes]:  # noqa: B006  drawn once, as its pixels do not matter
    """A PNG's bytes up to the end of its header, and the rest."""
    if not cached:
        from PIL import Image

        buffer = BytesIO()
        Image.effect_noise((512, 512), 60).convert("RGB").save(buffer, "PNG")
        cached.append(buffer.getvalue())
    return cached[0][:33], cached[0][33:]


if __name__ == "__main__":
    sys.exit(main())
