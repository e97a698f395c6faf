"""The settings of the Preprocess tab: labels, advice, ranges, by the fields of `PreprocessConfig`. Knows nothing of what a click does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from textual_inversion.app.actions import clean, folder_text
from textual_inversion.settings.preprocessing import CAPTION_PLACES, EXISTING, FLIPS, OBJECTIVES, RESIZE, TRANSPARENCY, PreprocessConfig
from textual_inversion.ui.form import Row, Setting

_SIDE = {"minimum": 64, "maximum": 2048, "step": 8}
_AREA = {"minimum": 64 * 64, "maximum": 2048 * 2048, "step": 1}
_PART = {"minimum": 0, "maximum": 1, "step": 0.05}

SOURCE: tuple[Row, ...] = (
    (Setting("source", "text", "Source directory", "Pictures as they are; this folder is only read.", saved=False),),
)

RESULT: tuple[Row, ...] = (
    (Setting("destination", "text", "Destination directory", "Made if missing. Captions (.txt) come along.", saved=False),),
    (
        Setting("width", "slider", "Preprocess width", "Pixels of the results.", options=_SIDE, saved=False),
        Setting("height", "slider", "Preprocess height", "Best what you train at.", options=_SIDE, saved=False),
    ),
    (
        Setting(
            "resize",
            "choice",
            "Preprocess resize mode",
            "crop: fill the size. fit: whole pictures inside it. keep: as large as they are. Not with focal or auto-sized crop.",
            options={"choices": list(RESIZE)},
        ),
        Setting(
            "flips",
            "checks",
            "Create flipped copies",
            "Not for text, or faces that must keep their side.",
            options={"choices": list(FLIPS)},
        ),
    ),
    (Setting("use_result", "check", "Train on the result", "Points the Train tab at the destination.", True),),
)

GROUPS: tuple[tuple[str, tuple[Row, ...]], ...] = (
    (
        "Focal point crop",
        (
            (
                Setting("focal_crop", "check", "Auto focal point crop", "Crop where faces, detail and edges are, instead of the middle."),
                Setting("focal_debug", "check", "Create debug image", "What it saw, in the folder focal-point of the destination."),
            ),
            (
                Setting("face_weight", "slider", "Face weight", "Needs OpenCV.", options=_PART),
                Setting("entropy_weight", "slider", "Entropy weight", "Pull of detail.", options=_PART),
                Setting("edges_weight", "slider", "Edges weight", "Pull of corners and edges.", options=_PART),
            ),
        ),
    ),
    (
        "Split oversized images",
        (
            (Setting("split", "check", "Split oversized images", "Cut long pictures into several that overlap."),),
            (
                Setting("split_threshold", "slider", "Split image threshold", "0.5: those of twice the wanted length.", options=_PART),
                Setting("split_overlap", "slider", "Split image overlap ratio", "Of neighbours.", options={**_PART, "maximum": 0.9}),
            ),
        ),
    ),
    (
        "Auto-sized crop",
        (
            (Setting("auto_size", "check", "Auto-sized crop", "Each picture's size follows its shape, within these bounds."),),
            (
                Setting("min_side", "slider", "Dimension lower bound", "Pixels.", options=_SIDE),
                Setting("max_side", "slider", "Dimension upper bound", "Pixels.", options=_SIDE),
                Setting("side_step", "slider", "Dimension step", "Pixels.", options={"minimum": 8, "maximum": 512, "step": 8}),
            ),
            (
                Setting("min_area", "slider", "Area lower bound", "Square pixels.", options=_AREA),
                Setting("max_area", "slider", "Area upper bound", "Square pixels.", options=_AREA),
            ),
            (
                Setting(
                    "objective",
                    "choice",
                    "Resizing objective",
                    "The largest area within the error, or the least error.",
                    options={"choices": list(OBJECTIVES)},
                ),
                Setting("error_threshold", "slider", "Error threshold", "Most that the shape may differ.", options=_PART),
            ),
        ),
    ),
    (
        "Captions",
        (
            (
                Setting(
                    "captioners",
                    "checks",
                    "Describe the pictures with",
                    "BLIP writes a sentence, a tagger lists tags; Look shows the captions before anything is written.",
                    saved=False,
                ),
            ),
            (
                Setting(
                    "existing_captions",
                    "choice",
                    "Existing captions",
                    "keep: describe only pictures without one.",
                    options={"choices": list(EXISTING)},
                ),
                Setting(
                    "caption_place",
                    "choice",
                    "Write captions as",
                    "Files beside the results, or their names.",
                    options={"choices": list(CAPTION_PLACES)},
                ),
            ),
            (
                Setting("caption_prefix", "text", "Caption prefix", "First words of every caption, with their comma."),
                Setting("caption_suffix", "text", "Caption suffix", "Last words of every caption."),
                Setting("caption_join", "text", "Caption join string", "Between an old caption and a new one."),
            ),
            (
                Setting(
                    "drop_words",
                    "text",
                    "Words to drop from all captions",
                    "Separated by commas: what names the concept itself, so that the new word has to learn it.",
                    saved=False,
                ),
            ),
            (
                Setting("blip_model", "text", "BLIP model", "A folder, or a name on the Hugging Face hub."),
                Setting("may_download", "check", "Download the BLIP model if it is missing", "About 1 GB, once.", False, saved=False),
            ),
            (
                Setting("tagger_folder", "text", "Tagger folder", "With model.onnx and selected_tags.csv; needs onnxruntime."),
                Setting("tag_threshold", "slider", "Tag threshold", "Least certainty of the tagger's tags.", options=_PART),
            ),
            (
                Setting(
                    "captions_only",
                    "check",
                    "Captions only",
                    "Write .txt files beside the source's pictures, and no pictures.",
                    saved=False,
                ),
            ),
        ),
    ),
    (
        "Reading",
        (
            (
                Setting("exif", "check", "Turn pictures upright", "As the camera has noted it."),
                Setting(
                    "transparency",
                    "choice",
                    "Transparent parts",
                    "On the colour, or kept as loss weight.",
                    options={"choices": list(TRANSPARENCY)},
                ),
                Setting("background", "text", "Lay transparent parts on", "A name, or #rrggbb."),
            ),
        ),
    ),
)


def starting_values(destination: str, width: int, height: int, captioners: Sequence[str]) -> dict[str, Any]:
    """Values of the form: the defaults of `PreprocessConfig`, a place for the results, and the names of who can describe pictures."""
    values = {field.name: field.default for field in fields(PreprocessConfig)}
    lists = {"flips": [], "captioners": [], "captioners_options": {"choices": list(captioners)}}
    return {**values, **lists, "source": "", "destination": destination, "width": width, "height": height}


def config_of(values: Mapping[str, Any]) -> PreprocessConfig:
    """The tab's values as settings.

    Raises:
        ConfigError: naming the first setting that cannot be used.
    """
    labels = {setting.key: setting.label for row in _rows() for setting in row}
    cleaned: dict[str, Any] = {}
    for field in fields(PreprocessConfig):
        if field.name in ("source", "destination", "tagger_folder"):
            cleaned[field.name] = folder_text(values.get(field.name))
        elif field.name in ("flips", "captioners"):
            cleaned[field.name] = tuple(values.get(field.name) or ())
            if field.name == "flips":  # in whatever order they were ticked
                cleaned[field.name] = tuple(flip for flip in FLIPS if flip in cleaned[field.name])
        elif field.name in values:
            cleaned[field.name] = clean(values[field.name], field.default, labels[field.name])
    cleaned["caption_join"] = str(values.get("caption_join") or "")  # a space at its end means something
    if cleaned.get("captions_only"):
        cleaned["destination"] = ""  # the form is never empty there
    return PreprocessConfig(**cleaned)


def values_of(config: PreprocessConfig) -> dict[str, Any]:
    """What the form's components show for these settings; an empty destination leaves the form's own."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if key != "destination" or value}


def _rows() -> list[Row]:
    return [*SOURCE, *RESULT, *(row for _, rows in GROUPS for row in rows)]
