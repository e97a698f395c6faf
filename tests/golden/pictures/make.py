"""Makes the pictures of this folder with A1111's own functions, and `expected.json`, which says what is in them.

    A1111=FOLDER python tests/golden/pictures/make.py

FOLDER is a copy of A1111 1.10.1, of which only modules/textual_inversion/image_embedding.py is used.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import torch
from PIL import Image, PngImagePlugin

HERE = Path(__file__).parent
HEIGHT = 96
#: File -> the seed of the vectors and the shape for each text encoder.
SHAPES: dict[str, tuple[int, dict[str, list[int]]]] = {
    "chunk.png": (1, {"clip_l": [2, 768]}),
    "chunk-ztxt.png": (2, {"clip_h": [1, 1024]}),
    "chunk-itxt.png": (3, {"clip_l": [1, 768]}),
    "chunk-sdxl.png": (4, {"clip_l": [1, 768], "clip_g": [1, 1280]}),
    "data.png": (5, {"clip_l": [3, 768]}),
    "data-black-border.png": (6, {"clip_h": [1, 1024]}),
    "data-rgba.png": (7, {"clip_l": [1, 768]}),
    "data-lossless.webp": (8, {"clip_l": [1, 768]}),
}
#: Copies that lost what they carried.
LOST = ("lost-lossy.webp", "lost-scaled.png")


def vectors(seed: int, shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Encoder -> fp32 vectors; this generator's numbers are the same in every version of numpy."""
    generator = numpy.random.RandomState(seed)
    return {key: torch.from_numpy(generator.standard_normal(shape).astype(numpy.float32) * 0.05) for key, shape in shapes.items()}


def load_a1111() -> ModuleType:
    path = Path(os.environ["A1111"], "modules/textual_inversion/image_embedding.py")
    spec = importlib.util.spec_from_file_location("a1111_image_embedding", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tree_of(name: str) -> dict[str, Any]:
    seed, shapes = SHAPES[name]
    found = vectors(seed, shapes)
    if len(found) > 1:
        return found
    (rows,) = found.values()
    words = {"name": f"inner {seed}", "step": 100 * seed, "sd_checkpoint": "0123456789", "sd_checkpoint_name": "tiny"}
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, **words}


def picture() -> Image.Image:
    y, x = numpy.mgrid[0:HEIGHT, 0:HEIGHT]
    return Image.fromarray(numpy.stack([2 * x + 20, 2 * y + 20, 220 - x - y], axis=2).astype(numpy.uint8))


def chunk(a1111: ModuleType, name: str, image: Image.Image, **how: Any) -> None:
    texts = PngImagePlugin.PngInfo()
    text = a1111.embedding_to_b64(tree_of(name))
    if how.pop("international", False):
        texts.add_itxt("sd-ti-embedding", text.decode())
    else:
        texts.add_text("sd-ti-embedding", text, **how)
    image.save(HERE / name, pnginfo=texts)


def hidden(a1111: ModuleType, name: str) -> Image.Image:
    return a1111.insert_image_data_embed(picture(), tree_of(name))


def main() -> None:
    a1111 = load_a1111()
    chunk(a1111, "chunk.png", hidden(a1111, "chunk.png"))  # both, as A1111 saves it
    chunk(a1111, "chunk-ztxt.png", picture(), zip=True)
    chunk(a1111, "chunk-itxt.png", picture(), international=True)
    chunk(a1111, "chunk-sdxl.png", picture())
    hidden(a1111, "data.png").save(HERE / "data.png")
    inner = hidden(a1111, "data-black-border.png")
    bordered = Image.new("RGB", (inner.width + 9, inner.height + 12))
    bordered.paste(inner, (7, 3))
    bordered.save(HERE / "data-black-border.png")
    hidden(a1111, "data-rgba.png").convert("RGBA").save(HERE / "data-rgba.png")
    carrier = hidden(a1111, "data-lossless.webp")
    carrier.save(HERE / "data-lossless.webp", lossless=True)
    carrier.save(HERE / "lost-lossy.webp", quality=90)
    carrier.resize((carrier.width * 3 // 4, carrier.height * 3 // 4)).save(HERE / "lost-scaled.png")
    (HERE / "expected.json").write_text(json.dumps({name: _expected(name) for name in SHAPES}, indent=1) + "\n")


def _expected(name: str) -> dict[str, Any]:
    seed, shapes = SHAPES[name]
    words = {key: value for key, value in tree_of(name).items() if key in ("name", "step", "sd_checkpoint", "sd_checkpoint_name")}
    return {"layout": "PNG chunk" if name.startswith("chunk") else "hidden picture data", "seed": seed, "shapes": shapes, **words}


if __name__ == "__main__":
    main()
