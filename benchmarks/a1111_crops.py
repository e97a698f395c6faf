"""A1111's own focal-point crop over a folder, run by its own Python: `python a1111_crops.py A1111_DIR SOURCE DESTINATION SIDE`.

Imports nothing of this package. It reads, crops and saves each picture as A1111's Extras do, with the functions that are in A1111_DIR.
A1111 finds faces with a model that it downloads at the first use. Without this file, faces get no weight here, because A1111's
fallback (cascades) raises an error whenever it finds a face.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(a1111: str, source: str, destination: str, side: str) -> None:
    sys.path.insert(0, a1111)
    sys.argv = sys.argv[:1]  # A1111 reads its own options from there
    from modules.textual_inversion import autocrop  # noqa: TID251  in A1111's own process
    from PIL import Image, ImageOps, PngImagePlugin

    model = autocrop.model_file_path if Path(autocrop.model_file_path).is_file() else None
    weights = {"face_points_weight": 0.9 if model else 0.0, "entropy_points_weight": 0.15, "corner_points_weight": 0.5}
    settings = autocrop.Settings(int(side), int(side), dnn_model_path=model, **weights)
    begin, processor = time.perf_counter(), time.process_time()
    count = 0
    for path in sorted(Path(source).iterdir()):
        image = ImageOps.exif_transpose(Image.open(path))
        image = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
        cropped = autocrop.crop_image(image.convert("RGB"), settings)[0]
        cropped.save(Path(destination) / f"{path.stem}.png", pnginfo=PngImagePlugin.PngInfo())
        count += 1
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    figures = {"pictures": count, "seconds": seconds, "processor": processor, "peak": peak_memory(), "faces": bool(model)}
    print(json.dumps(figures))


def peak_memory() -> float:
    """Peak memory of this process in MB. Only Linux reports it separately from the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
