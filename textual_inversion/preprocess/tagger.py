"""Tags by an ONNX tagger of the WD14 kind, through onnxruntime where that is installed."""

from __future__ import annotations

import csv
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from textual_inversion.errors import ConfigError
from textual_inversion.files import open_regular

MODEL, TAGS = "model.onnx", "selected_tags.csv"
_RATING = "9"  # category of ratings in the list of tags; they do not describe the picture
_EMPHASIS = re.compile(r"([\\()])")


@dataclass(frozen=True)
class Tagger:
    """Describes a picture by tags joined by `, `, the surest first. Safe from one thread at a time.

    Attributes:
        session: an onnxruntime session: one input [1, side, side, 3], one output [1, tags] of certainties from 0 to 1.
        tags: (name, category) in the order of the output.
        threshold: least certainty of a tag, 0 to 1.
    """

    session: Any
    tags: tuple[tuple[str, str], ...]
    threshold: float

    def __call__(self, image: Image.Image, /) -> str:
        """Tags of an RGB picture; none when nothing is sure enough."""
        certainties = self.session.run(None, {self.session.get_inputs()[0].name: self._pixels(image)})[0][0]
        sure = [(float(certainty), tag) for certainty, (tag, category) in zip(certainties, self.tags) if category != _RATING]
        chosen = sorted((pair for pair in sure if pair[0] >= self.threshold), key=lambda pair: -pair[0])
        return ", ".join(_spelled(tag) for _, tag in chosen)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """fp32 [1, side, side, 3], blue first, 0 to 255: the whole picture on white, as these taggers were trained."""
        shape = self.session.get_inputs()[0].shape
        side = shape[1] if isinstance(shape[1], int) else 448
        scale = side / max(image.size)
        inner = image.convert("RGB").resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BICUBIC)
        square = Image.new("RGB", (side, side), "white")
        square.paste(inner, ((side - inner.width) // 2, (side - inner.height) // 2))
        return np.asarray(square, dtype=np.float32)[None, :, :, ::-1].copy()


def load_tagger(folder: str | Path, threshold: float) -> Tagger:
    """Load `model.onnx` and `selected_tags.csv` from a folder.

    Raises:
        ConfigError: onnxruntime is not installed, or the folder does not hold such a tagger.
    """
    if not str(folder).strip():
        raise ConfigError(f"No folder for the tagger is given; name the one that holds {MODEL} and {TAGS}.", setting="tagger_folder")
    path = Path(folder).expanduser()
    for name in (MODEL, TAGS):
        if not (path / name).is_file():
            sentence = f"The tagger's folder {path} has no {name}; choose one with {MODEL} and {TAGS}."
            raise ConfigError(sentence, path=path, setting="tagger_folder")
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        sentence = "The tagger needs onnxruntime, which is not installed; `pip install onnxruntime` adds it."
        raise ConfigError(sentence, setting="captioners") from error
    try:
        session = onnxruntime.InferenceSession(str(path / MODEL), providers=onnxruntime.get_available_providers())
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        sentence = f"The tagger {path / MODEL} cannot be loaded ({reason}); download it again."
        raise ConfigError(sentence, path=path / MODEL, setting="tagger_folder") from error
    tags = read_tags(path / TAGS)
    outputs = session.get_outputs()[0].shape[-1]
    if isinstance(outputs, int) and outputs != len(tags):
        sentence = f"The tagger in {path} gives {outputs} values for {len(tags)} tags; take both files from one download."
        raise ConfigError(sentence, path=path, setting="tagger_folder")
    return Tagger(session, tags, threshold)


def read_tags(path: Path) -> tuple[tuple[str, str], ...]:
    """(name, category) of each row of a list of tags, a CSV file with at least the columns `name` and `category`.

    Raises:
        ConfigError: it is no such file.
    """
    try:
        with open_regular(path, "r", encoding="utf-8-sig", newline="") as file:
            tags = tuple((row["name"], row["category"]) for row in csv.DictReader(file))
    except (OSError, KeyError, ValueError, csv.Error) as error:
        sentence = f"{path} is no list of tags ({error}); it needs the columns name and category."
        raise ConfigError(sentence, path=path, setting="tagger_folder") from error
    if not tags:
        raise ConfigError(f"{path} has no tags; download it again.", path=path, setting="tagger_folder")
    return tags


def _spelled(tag: str) -> str:
    """A tag as it is written in prompts: spaces for underscores, except in faces such as `^_^`, and brackets escaped."""
    words = tag.replace("_", " ") if any(char.isalpha() for char in tag) and len(tag) > 3 else tag
    return _EMPHASIS.sub(r"\\\1", words)
