"""What is done to every picture of a folder, as one set of checked settings. Knows nothing of pixels, models or pages."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path

from PIL import ImageColor

from textual_inversion.errors import ConfigError

RESIZE = ("crop", "fit", "keep")
TRANSPARENCY = ("colour", "weight")
OBJECTIVES = ("area", "error")
FLIPS = ("horizontal", "vertical", "both")
EXISTING = ("keep", "copy", "prepend", "append", "replace")
CAPTION_PLACES = ("txt", "name")

_CHOICES = {
    "resize": RESIZE,
    "transparency": TRANSPARENCY,
    "objective": OBJECTIVES,
    "existing_captions": EXISTING,
    "caption_place": CAPTION_PLACES,
}
_WHOLE = {
    "width": (64, 2048, 8),
    "height": (64, 2048, 8),
    "min_side": (64, 2048, 8),
    "max_side": (64, 2048, 8),
    "side_step": (8, 512, 8),
    "min_area": (64 * 64, 2048 * 2048, 1),
    "max_area": (64 * 64, 2048 * 2048, 1),
}
_PARTS = {
    "split_threshold": 1.0,
    "split_overlap": 0.9,
    "face_weight": 1.0,
    "entropy_weight": 1.0,
    "edges_weight": 1.0,
    "error_threshold": 1.0,
    "tag_threshold": 1.0,
}
_SWITCHES = ("captions_only", "exif", "split", "focal_crop", "focal_debug", "auto_size")
#: Switch -> the settings that say nothing while it is off.
_ONLY_WITH = {
    "split": ("split_threshold", "split_overlap"),
    "focal_crop": ("face_weight", "entropy_weight", "edges_weight"),
    "auto_size": ("min_side", "max_side", "side_step", "min_area", "max_area", "objective", "error_threshold"),
}
_SHAPES_PIXELS = ("width", "height", "resize", "exif", "transparency", "background", *_ONLY_WITH)


@dataclass(frozen=True)
class PreprocessConfig:
    """What is done to every picture of a folder, in the order of these fields; each step has its own switch.

    Attributes:
        source: folder of pictures; they are never changed, and subfolders are not searched
        destination: folder for the results, made if missing; a subfolder of the source will do; empty with `captions_only`
        captions_only: write no pictures, only captions (.txt) beside those of the source
        width: pixels of the results (multiple of 8, 64 to 2048)
        height: pixels of the results, likewise
        exif: turn pictures upright as the camera has noted it; TIFF files are turned in any case
        transparency: what shows through is laid on the background (`colour`), or stays as PNG alpha for a loss weight (`weight`)
        background: colour under transparent parts: a name, or such as #ffffff
        split: cut pictures much longer than the wanted shape into several that overlap
        split_threshold: how much longer (0 to 1): at 0.5, those of at least twice the wanted length
        split_overlap: least overlap of neighbours as a part of their length (0 to 0.9)
        focal_crop: crop where faces, detail and edges are, instead of at the centre
        face_weight: pull of faces on the focal crop (0 to 1); needs OpenCV with its face cascade
        entropy_weight: pull of detail (0 to 1)
        edges_weight: pull of corners and edges (0 to 1)
        focal_debug: draw what the focal crop saw and chose into the folder `focal-point` of the destination
        auto_size: choose each picture's width and height by its shape, within the bounds that follow, instead of one size for all
        min_side: least width and height of `auto_size` in pixels (multiple of 8, 64 to 2048)
        max_side: greatest width and height of `auto_size`, likewise
        side_step: sides of `auto_size` are `min_side` and whole steps above (pixels, multiple of 8, 8 to 512)
        min_area: least area of `auto_size` in square pixels (4096 to 4194304)
        max_area: greatest area of `auto_size`, likewise
        objective: `auto_size` takes the largest `area` within the error, or the least `error` in shape
        error_threshold: most that `auto_size` may differ in shape from the picture (0 to 1); pictures that fit nowhere are left out
        resize: without `auto_size`, fill the size and `crop` the rest, `fit` whole pictures inside it, or `keep` them as large as they are
        flips: mirrored copies: any of `horizontal`, `vertical`, `both`; not for text or faces that must keep their side
        captioners: what describes the pictures, in order: `blip`, `tagger`, or a name that the WebUI offers
        blip_model: BLIP model for the captioner `blip`: a folder, or a name on the Hugging Face hub
        tagger_folder: folder with the model.onnx and selected_tags.csv of the captioner `tagger`
        tag_threshold: least certainty of a tag (0 to 1)
        existing_captions: with a new one, `keep` the old, `copy` it byte by byte, `prepend` it, `append` it, or `replace` it
        caption_join: what stands between an existing caption and new ones
        caption_prefix: first words of every caption, with their own comma if they need one
        caption_suffix: last words of every caption, likewise
        drop_words: words, separated by commas, that no caption shall hold, such as those for the thing that is taught
        caption_place: write captions beside the results (`txt`), or as their file names (`name`)

    Raises:
        ConfigError: naming the first setting that cannot be used.
    """

    source: str
    destination: str = ""
    captions_only: bool = False
    width: int = 512
    height: int = 512
    exif: bool = True
    transparency: str = "colour"
    background: str = "#ffffff"
    split: bool = False
    split_threshold: float = 0.5
    split_overlap: float = 0.2
    focal_crop: bool = False
    face_weight: float = 0.9
    entropy_weight: float = 0.15
    edges_weight: float = 0.5
    focal_debug: bool = False
    auto_size: bool = False
    min_side: int = 384
    max_side: int = 768
    side_step: int = 64
    min_area: int = 64 * 64
    max_area: int = 640 * 640
    objective: str = "area"
    error_threshold: float = 0.1
    resize: str = "crop"
    flips: tuple[str, ...] = ()
    captioners: tuple[str, ...] = ()
    blip_model: str = "Salesforce/blip-image-captioning-base"
    tagger_folder: str = ""
    tag_threshold: float = 0.5
    existing_captions: str = "keep"
    caption_join: str = ", "
    caption_prefix: str = ""
    caption_suffix: str = ""
    drop_words: str = ""
    caption_place: str = "txt"

    def __post_init__(self) -> None:
        _check_values(self)
        if not self.source.strip():
            raise ConfigError("Source is empty; name a folder.")
        if self.captions_only:
            self._check_captions_only()
            return
        if not self.destination.strip():
            raise ConfigError("Destination is empty; name a folder.")
        if _same_folder(self.source_path, self.destination_path):
            raise ConfigError(
                f"Source and destination are both {self.source_path}; choose another destination, for sources are never changed."
            )

    def _check_captions_only(self) -> None:
        if self.destination.strip() and not _same_folder(self.source_path, Path(self.destination).expanduser()):
            raise ConfigError("With captions only, captions are written beside the source's pictures; leave the destination empty.")
        if self.caption_place != "txt":
            raise ConfigError("With captions only, the file names stay as they are; choose .txt files for the captions.")
        if not (self.captioners or self.caption_prefix or self.caption_suffix or self.drop_words):
            raise ConfigError("With captions only there is nothing to do yet; choose a captioner, a prefix, a suffix or words to drop.")

    @property
    def source_path(self) -> Path:
        """`source` as a path, `~` resolved."""
        return Path(self.source).expanduser()

    @property
    def destination_path(self) -> Path:
        """Where results go, `~` resolved: the source's own folder with `captions_only`."""
        return self.source_path if self.captions_only else Path(self.destination).expanduser()

    @property
    def fingerprint(self) -> str:
        """A short text that differs whenever the settings would give other pixels."""
        names = [*_SHAPES_PIXELS, *(name for switch, held in _ONLY_WITH.items() if getattr(self, switch) for name in held)]
        values = json.dumps({name: getattr(self, name) for name in sorted(names)})
        return hashlib.sha256(values.encode()).hexdigest()[:16]


def _check_values(config: PreprocessConfig) -> None:
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        if problem := _problem(name, value):
            raise ConfigError(f"{name.replace('_', ' ').capitalize()} is {value!r}; it must be {problem}.")
    for low, high in (("min_side", "max_side"), ("min_area", "max_area")):
        if getattr(config, low) > getattr(config, high):
            found = f"{getattr(config, low)} is above {high.replace('_', ' ')} {getattr(config, high)}"
            raise ConfigError(f"{low.replace('_', ' ').capitalize()} {found}; exchange them.")


def _problem(name: str, value: object) -> str:
    """What `value` must be and is not; empty when all is well."""
    if name in _WHOLE:
        least, most, step = _WHOLE[name]
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most and value % step == 0
        kind = f"a multiple of {step}" if step > 1 else "a whole number"
        return "" if good else f"{kind} from {least} to {most}"
    if name in _PARTS:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return "" if number and 0 <= float(str(value)) <= _PARTS[name] else f"a number from 0 to {_PARTS[name]:g}"
    if name in _SWITCHES:
        return "" if isinstance(value, bool) else "true or false"
    if name in _CHOICES:
        return "" if value in _CHOICES[name] else f"one of {', '.join(_CHOICES[name])}"
    return _text_problem(name, value)


def _text_problem(name: str, value: object) -> str:
    if name in ("flips", "captioners"):
        known = isinstance(value, tuple) and all(isinstance(item, str) and (name != "flips" or item in FLIPS) for item in value)
        choices = f" of {', '.join(FLIPS)}" if name == "flips" else " of names"
        once = known and isinstance(value, tuple) and len(set(value)) == len(value)
        return "" if once else f"a tuple{choices}, each once"
    if not isinstance(value, str) or "\0" in value:
        return "a text"
    if name == "background":
        try:
            ImageColor.getrgb(value)
        except ValueError:
            return "the name of a colour, or such as #ffffff"
    return ""


def _same_folder(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one.resolve() == other.resolve()  # one of them does not exist (yet)
