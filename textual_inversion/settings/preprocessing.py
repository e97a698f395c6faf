"""What is done to every picture of a folder, as one set of checked settings."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from textual_inversion.errors import ConfigError
from textual_inversion.settings.generation import SIDE
from textual_inversion.settings.schema import Settings, colour, setting, titled

RESIZE = ("crop", "fit", "keep")
TRANSPARENCY = ("colour", "weight")
OBJECTIVES = ("area", "error")
FLIPS = ("horizontal", "vertical", "both")
EXISTING = ("keep", "copy", "prepend", "append", "replace")
CAPTION_PLACES = ("txt", "name")

_AREA: dict[str, Any] = {"minimum": 64 * 64, "maximum": 2048 * 2048, "step": 1}
_PART: dict[str, Any] = {"minimum": 0, "maximum": 1, "step": 0.05}
#: Switch -> the settings that have no effect while it is off.
_ONLY_WITH = {
    "split": ("split_threshold", "split_overlap"),
    "focal_crop": ("face_weight", "entropy_weight", "edges_weight"),
    "auto_size": ("min_side", "max_side", "side_step", "min_area", "max_area", "objective", "error_threshold"),
}
_SHAPES_PIXELS = ("width", "height", "resize", "exif", "transparency", "background", *_ONLY_WITH)


@dataclass(frozen=True)
class PreprocessConfig(Settings):
    """What is done to every picture of a folder, in the order of these fields; each step has its own switch.

    The declaration of each field describes it, and docs/settings.md lists all fields.

    Raises:
        ConfigError: with the name of the first setting that cannot be used.
    """

    GROUPS: ClassVar[tuple[str, ...]] = ("size", "reading", "splitting", "focal-point crop", "auto-sized crop", "copies", "captions")

    source: str = setting(
        label="Source directory",
        hint="Pictures as they are; this folder is only read.",
        help="folder of pictures; no picture in it is changed, and subfolders are not searched",
        folder=True,
        metavar="SOURCE",
        saved=False,
    )
    destination: str = setting(
        "",
        label="Destination directory",
        hint="Made if missing. Captions (.txt) come along.",
        help="folder for the results, made if missing; a subfolder of the source will do; none with `captions_only`",
        folder=True,
        metavar="DESTINATION",
        saved=False,
    )
    captions_only: bool = setting(
        False,
        group="captions",
        label="Captions only",
        hint="Write .txt files beside the source's pictures, and no pictures.",
        help="write no pictures, only captions (.txt) beside those of the source",
        saved=False,
    )
    width: int = setting(
        512,
        **SIDE,
        group="size",
        label="Preprocess width",
        hint="Pixels of the results.",
        help="pixels of the results ({range})",
        saved=False,
    )
    height: int = setting(
        512,
        **SIDE,
        group="size",
        label="Preprocess height",
        hint="Best what you train at.",
        help="pixels of the results, likewise",
        saved=False,
    )
    exif: bool = setting(
        True,
        group="reading",
        label="Turn pictures upright",
        hint="As the camera has noted it.",
        help="turn pictures upright as the camera has noted it; TIFF files are turned in any case",
    )
    transparency: str = setting(
        "colour",
        choices=TRANSPARENCY,
        group="reading",
        label="Transparent parts",
        hint="On the colour, or kept as loss weight.",
        help="what shows through is laid on the background (`colour`), or stays as PNG alpha for a loss weight (`weight`)",
    )
    background: str = setting(
        "#ffffff",
        group="reading",
        label="Lay transparent parts on",
        hint="A name, or #rrggbb.",
        help="colour under transparent parts: a name, or such as #ffffff",
        rule=colour,
    )
    split: bool = setting(
        False,
        group="splitting",
        label="Split oversized images",
        hint="Cut long pictures into several that overlap.",
        help="cut pictures much longer than the wanted shape into several that overlap",
    )
    split_threshold: float = setting(
        0.5,
        **_PART,
        group="splitting",
        label="Split image threshold",
        hint="0.5: those of twice the wanted length.",
        help="how much longer ({range}): at 0.5, those of at least twice the wanted length",
    )
    split_overlap: float = setting(
        0.2,
        **{**_PART, "maximum": 0.9},
        group="splitting",
        label="Split image overlap ratio",
        hint="Of neighbours.",
        help="least overlap of neighbours as a part of their length ({range})",
    )
    focal_crop: bool = setting(
        False,
        group="focal-point crop",
        label="Auto focal point crop",
        hint="Crop where faces, detail and edges are, instead of the middle.",
        help="crop where faces, detail and edges are, instead of at the centre",
    )
    face_weight: float = setting(
        0.9,
        **_PART,
        group="focal-point crop",
        label="Face weight",
        hint="Needs OpenCV.",
        help="pull of faces on the focal crop ({range}); needs OpenCV with its face cascade",
    )
    entropy_weight: float = setting(
        0.15,
        **_PART,
        group="focal-point crop",
        label="Entropy weight",
        hint="Pull of detail.",
        help="pull of detail ({range})",
    )
    edges_weight: float = setting(
        0.5,
        **_PART,
        group="focal-point crop",
        label="Edges weight",
        hint="Pull of corners and edges.",
        help="pull of corners and edges ({range})",
    )
    focal_debug: bool = setting(
        False,
        group="focal-point crop",
        label="Create debug image",
        hint="What it saw, in the folder focal-point of the destination.",
        help="draw what the focal crop saw and chose into the folder `focal-point` of the destination",
    )
    auto_size: bool = setting(
        False,
        group="auto-sized crop",
        label="Auto-sized crop",
        hint="Each picture's size follows its shape, within these bounds.",
        help="choose each picture's width and height by its shape, within the bounds that follow, instead of one size for all",
    )
    min_side: int = setting(
        384,
        **SIDE,
        group="auto-sized crop",
        label="Dimension lower bound",
        hint="Pixels.",
        help="least width and height of `auto_size` in pixels ({range})",
    )
    max_side: int = setting(
        768,
        **SIDE,
        group="auto-sized crop",
        label="Dimension upper bound",
        hint="Pixels.",
        help="greatest width and height of `auto_size`, likewise",
    )
    side_step: int = setting(
        64,
        minimum=8,
        maximum=512,
        multiple=8,
        group="auto-sized crop",
        label="Dimension step",
        hint="Pixels.",
        help="sides of `auto_size` are `min_side` and whole steps above (pixels, {range})",
    )
    min_area: int = setting(
        64 * 64,
        **_AREA,
        group="auto-sized crop",
        label="Area lower bound",
        hint="Square pixels.",
        help="least area of `auto_size` in square pixels ({range})",
    )
    max_area: int = setting(
        640 * 640,
        **_AREA,
        group="auto-sized crop",
        label="Area upper bound",
        hint="Square pixels.",
        help="greatest area of `auto_size`, likewise",
    )
    objective: str = setting(
        "area",
        choices=OBJECTIVES,
        group="auto-sized crop",
        label="Resizing objective",
        hint="The largest area within the error, or the least error.",
        help="`auto_size` takes the largest `area` within the error, or the least `error` in shape",
    )
    error_threshold: float = setting(
        0.1,
        **_PART,
        group="auto-sized crop",
        label="Error threshold",
        hint="Most that the shape may differ.",
        help="most that `auto_size` may differ in shape from the picture ({range}); pictures that fit nowhere are left out",
    )
    resize: str = setting(
        "crop",
        choices=RESIZE,
        group="size",
        label="Preprocess resize mode",
        hint="crop: fill the size. fit: whole pictures inside it. keep: as large as they are. Not with focal or auto-sized crop.",
        help="without `auto_size`, fill the size and `crop` the rest, `fit` whole pictures inside it, or `keep` them as large as they are",
    )
    flips: tuple[str, ...] = setting(
        (),
        choices=FLIPS,
        group="copies",
        label="Create flipped copies",
        hint="Not for text, or faces that must keep their side.",
        help="mirrored copies: any of `horizontal`, `vertical`, `both`; not for text or faces that must keep their side; "
        "alone: `horizontal`",
        option="flip",
    )
    captioners: tuple[str, ...] = setting(
        (),
        group="captions",
        label="Describe the pictures with",
        hint="BLIP writes a sentence, a tagger lists tags; Look shows the captions before anything is written.",
        help="what describes the pictures, in order: `blip`, `tagger`, or a name that the WebUI offers",
        option="caption",
        metavar="NAME",
        saved=False,
    )
    blip_model: str = setting(
        "Salesforce/blip-image-captioning-base",
        group="captions",
        label="BLIP model",
        hint="A folder, or a name on the Hugging Face hub.",
        help="BLIP model for the captioner `blip`: a folder, or a name on the Hugging Face hub",
    )
    tagger_folder: str = setting(
        "",
        group="captions",
        label="Tagger folder",
        hint="With model.onnx and selected_tags.csv; needs onnxruntime.",
        help="folder with the model.onnx and selected_tags.csv of the captioner `tagger`",
        folder=True,
    )
    tag_threshold: float = setting(
        0.5,
        **_PART,
        group="captions",
        label="Tag threshold",
        hint="Least certainty of the tagger's tags.",
        help="least certainty of a tag ({range})",
    )
    existing_captions: str = setting(
        "keep",
        choices=EXISTING,
        group="captions",
        label="Existing captions",
        hint="keep: describe only pictures without one.",
        help="with a new one, `keep` the old, `copy` it byte by byte, `prepend` it, `append` it, or `replace` it",
    )
    caption_join: str = setting(
        ", ",
        group="captions",
        label="Caption join string",
        hint="Between an old caption and a new one.",
        help="what stands between an existing caption and new ones",
        verbatim=True,
    )
    caption_prefix: str = setting(
        "",
        group="captions",
        label="Caption prefix",
        hint="First words of every caption, with their comma.",
        help="first words of every caption, with their own comma if they need one",
    )
    caption_suffix: str = setting(
        "",
        group="captions",
        label="Caption suffix",
        hint="Last words of every caption.",
        help="last words of every caption, likewise",
    )
    drop_words: str = setting(
        "",
        group="captions",
        label="Words to drop from all captions",
        hint="Separated by commas: what names the concept itself, so that the new word has to learn it.",
        help="words, separated by commas, that no caption shall hold, such as those for the thing that is taught",
        saved=False,
    )
    caption_place: str = setting(
        "txt",
        choices=CAPTION_PLACES,
        group="captions",
        label="Write captions as",
        hint="Files beside the results, or their names.",
        help="write captions beside the results (`txt`), or as their file names (`name`)",
    )

    def check_together(self) -> None:
        """Refuse a minimum above its maximum, and contradictory folders."""
        for low, high in (("min_side", "max_side"), ("min_area", "max_area")):
            if getattr(self, low) > getattr(self, high):
                comparison = f"{getattr(self, low)} is above {high.replace('_', ' ')} {getattr(self, high)}"
                raise ConfigError(f"{titled(low)} {comparison}; exchange them.", setting=low)
        if not str(self.source).strip():
            raise ConfigError("Source is empty; name a folder.", setting="source")
        if self.captions_only:
            self._check_captions_only()
            return
        if not str(self.destination).strip():
            raise ConfigError("Destination is empty; name a folder.", setting="destination")
        if _same_folder(self.source_path, self.destination_path):
            reason = f"Source and destination are both {self.source_path}; choose another destination, for sources are never changed."
            raise ConfigError(reason, setting="destination")

    def _check_captions_only(self) -> None:
        if str(self.destination).strip() and not _same_folder(self.source_path, Path(self.destination).expanduser()):
            reason = "With captions only, captions are written beside the source's pictures; leave the destination empty."
            raise ConfigError(reason, setting="destination")
        if self.caption_place != "txt":
            reason = "With captions only, the file names stay as they are; choose .txt files for the captions."
            raise ConfigError(reason, setting="caption_place")
        if not (self.captioners or self.caption_prefix or self.caption_suffix or self.drop_words):
            reason = "With captions only there is nothing to do yet; choose a captioner, a prefix, a suffix or words to drop."
            raise ConfigError(reason, setting="captioners")

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
        """A short text that changes with every setting that affects the pixels."""
        names = [*_SHAPES_PIXELS, *(name for switch, held in _ONLY_WITH.items() if getattr(self, switch) for name in held)]
        values = json.dumps({name: getattr(self, name) for name in sorted(names)})
        return hashlib.sha256(values.encode()).hexdigest()[:16]


def _same_folder(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one.resolve() == other.resolve()  # one of them does not exist (yet)
