"""The settings of the tabs as gradio components: labels, advice, ranges. Knows nothing of what a click does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from textual_inversion.settings.generation import SAMPLERS
from textual_inversion.settings.training import CLIP_MODES, PRECISIONS, SAMPLING_METHODS, TrainingConfig
from textual_inversion.ui import compat


@dataclass(frozen=True)
class Setting:
    """One component: `key` in the form's values, what kind it is, and what a person reads."""

    key: str
    kind: str  # text, lines, whole, number, slider, check, checks, choice, open_choice
    label: str
    info: str = ""
    value: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    saved: bool = True  # whether a WebUI may remember it for the next start


Row = tuple[Setting, ...]  # side by side; a row of one stands alone

_SIDE = {"minimum": 64, "maximum": 2048, "step": 8}
_SIDE_OR_NONE = {"minimum": 0, "maximum": 2048, "step": 8}
_CHANCE = {"minimum": 0, "maximum": 1, "step": 0.05}
STEPS = {"minimum": 1, "maximum": 150, "step": 1}
GUIDANCE = {"minimum": 1, "maximum": 30, "step": 0.5}

PREVIEWS = "Previews and copies"
AS_TXT2IMG = Setting(
    "as_txt2img",
    "check",
    "Read parameters (prompt, etc...) from txt2img tab when making previews",
    "Instead of the preview settings above; as they are when Train is pressed.",
    False,
)

CREATE: tuple[Row, ...] = (
    (Setting("name", "text", "Name", "The new word. Letters, digits, . _ - and spaces; best one that means nothing yet.", saved=False),),
    (
        Setting(
            "initializer_text",
            "text",
            "Initialization text",
            "Words to start from. Few and related: “girl” for a character, “tree” for a tree; every further word teaches something too.",
            saved=False,
        ),
    ),
    (
        Setting(
            "num_vectors",
            "open_choice",
            "Number of vectors per token",
            "1–4 for simple things, 8–16 for complex characters. Each takes one of a prompt’s 75 places. auto = one for each word above.",
            options={"choices": ["auto", "1", "2", "3", "4", "6", "8", "12", "16"]},
        ),
    ),
    (
        Setting(
            "overwrite",
            "check",
            "Overwrite Old Embedding",
            "Begin anew if the name is taken; what it has learned is lost.",
            False,
            saved=False,
        ),
    ),
)

TRAIN_ESSENTIALS: tuple[Row, ...] = (
    (
        Setting(
            "name",
            "open_choice",
            "Embedding",
            "The word to train. A new name is created first, as the Create tab says.",
            saved=False,
        ),
    ),
    (
        Setting(
            "images",
            "text",
            "Dataset directory",
            "5–20 sharp pictures of one subject: different angles, poses and backgrounds.",
            saved=False,
        ),
    ),
)
TRAIN_BASICS: tuple[Row, ...] = (
    (
        Setting("steps", "whole", "Max steps", "Train until the word has had this many steps in all.", saved=False),
        Setting("learning_rate", "text", "Embedding Learning rate", "0.005 is usual. In stages: 0.005:2000, 0.002"),
        Setting("batch_size", "whole", "Batch size", "More is smoother, slower and needs memory."),
    ),
)

TRAIN_GROUPS: tuple[tuple[str, tuple[Row, ...]], ...] = (
    (
        "Prompts and captions",
        (
            (Setting("template", "choice", "Prompt template", "Sentences to train the word in; “filewords” ones use the captions."),),
            (
                Setting(
                    "filename_regex",
                    "text",
                    "Filename word regex",
                    "For pictures without a .txt: which parts of the file name are words; empty = all of it.",
                    saved=False,
                ),
                Setting("filename_join", "text", "Filename join string", "What stands between those words.", saved=False),
            ),
            (
                Setting("shuffle_tags", "check", "Shuffle tags by ',' when creating prompts.", "So that no order is learned."),
                Setting(
                    "tag_dropout",
                    "slider",
                    "Drop out tags when creating prompts.",
                    "Chance of leaving out each.",
                    options=_CHANCE,
                ),
            ),
            (
                Setting("keep_tags", "whole", "Keep the first N tags", "Neither shuffled nor dropped: what every picture is about."),
                Setting("caption_dropout", "slider", "Drop out whole captions", "So that the name alone has to do.", options=_CHANCE),
            ),
        ),
    ),
    (
        "Pictures and crops",
        (
            (
                Setting("buckets", "check", "Aspect buckets", "Several sizes of one area, so that little is cropped away."),
                Setting("no_resize", "check", "Do not resize images", "Each at its own size; large ones need memory."),
            ),
            (
                Setting(
                    "bucket_step",
                    "slider",
                    "Bucket step",
                    "Sides are multiples of this; smaller crops less and mixes less.",
                    options={"minimum": 8, "maximum": 64, "step": 8},
                ),
                Setting(
                    "crops",
                    "slider",
                    "Crops of each picture",
                    "Spread along the side that does not fit, one at random each time; 1 = the centre.",
                    options={"minimum": 1, "maximum": 16, "step": 1},
                ),
            ),
            (
                Setting("alpha_weight", "check", "Use PNG alpha channel as loss weight", "Or NAME-mask.png beside it: white counts."),
                Setting("background", "text", "Colour under transparency", "A name, or #rrggbb."),
            ),
            (
                Setting("subfolders", "check", "Read subfolders too", "One named 5_cats is shown 5 times as often.", saved=False),
                Setting("latent_cache", "text", "Latent cache directory", "Saves encoding next time; empty = off.", saved=False),
            ),
        ),
    ),
    (
        PREVIEWS,
        (
            (
                Setting("preview_every", "whole", "Save an image to log directory every N steps, 0 to disable", "Previews.", saved=False),
                Setting("copy_every", "whole", "Save a copy of embedding to log directory every N steps, 0 to disable", "To go back to."),
            ),
            (
                Setting(
                    "preview_prompt",
                    "lines",
                    "Preview prompt",
                    "[name] stands for the word; empty = a sentence of the template.",
                    saved=False,
                ),
            ),
            (Setting("preview_negative_prompt", "lines", "Preview negative prompt", "What previews are led away from.", saved=False),),
            (
                Setting("preview_steps", "slider", "Preview sampling steps", "Fewer draw faster.", options=STEPS),
                Setting("preview_cfg_scale", "slider", "Preview CFG Scale", "How closely it follows.", options=GUIDANCE),
            ),
            (
                Setting(
                    "preview_sampler",
                    "choice",
                    "Preview sampling method",
                    "What you draw with.",
                    options={"choices": list(SAMPLERS)},
                ),
                Setting("preview_width", "slider", "Preview width", "0 = the training width.", options=_SIDE_OR_NONE),
                Setting("preview_height", "slider", "Preview height", "0 = the training height.", options=_SIDE_OR_NONE),
            ),
            (
                Setting("preview_seed", "whole", "Preview seed", "Fixed, so that previews can be compared."),
                Setting(
                    "csv_every", "whole", "Write the loss table every N steps, 0 to disable", "loss.csv in the log directory.", saved=False
                ),
            ),
            (Setting("log_dir", "text", "Log directory", "Each run gets a folder of its own in it.", saved=False),),
        ),
    ),
    (
        "How it learns",
        (
            (
                Setting(
                    "save_optimizer",
                    "check",
                    "Save the optimizer's state",
                    "Beside the embedding, as X.optim; a later run goes on from it, and so can A1111's own trainer.",
                    saved=False,
                ),
            ),
            (
                Setting("gradient_accumulation_steps", "whole", "Gradient accumulation steps", "A larger batch without its memory."),
                Setting("weight_decay", "number", "Weight decay", "Pulls the vectors towards zero; 0 = off."),
            ),
            (
                Setting("clip_mode", "choice", "Gradient Clipping", "Holds single steps back.", options={"choices": list(CLIP_MODES)}),
                Setting("clip_schedule", "text", "Gradient clipping bound", "A number, or staged like the learning rate."),
            ),
            (
                Setting(
                    "latent_sampling",
                    "choice",
                    "Choose latent sampling method",
                    "once: one latent for each picture. random: a fresh one each time.",
                    options={"choices": list(SAMPLING_METHODS)},
                ),
                Setting("flip", "check", "Flip pictures at random", "Shows each mirrored half of the time."),
            ),
            (
                Setting(
                    "clip_skip",
                    "slider",
                    "Clip skip in training",
                    "As you draw with; 1 = none.",
                    options={"minimum": 1, "maximum": 12, "step": 1},
                    saved=False,
                ),
                Setting("seed", "whole", "Training seed", "The same seed gives the same vectors on the same device."),
            ),
        ),
    ),
    (
        "Size and device",
        (
            (
                Setting("width", "slider", "Width", "As the checkpoint was made.", options=_SIDE, saved=False),
                Setting("height", "slider", "Height", "Larger needs more memory.", options=_SIDE, saved=False),
            ),
            (
                Setting(
                    "precision",
                    "choice",
                    "Precision",
                    "Of the frozen model; vectors are always fp32.",
                    options={"choices": list(PRECISIONS)},
                ),
                Setting("device", "text", "Device", "cuda, cuda:1, mps, cpu; empty = the best there is.", saved=False),
            ),
        ),
    ),
)


def train_settings() -> list[Setting]:
    """Every setting of the Train tab, in the order of the page."""
    rows = [*TRAIN_ESSENTIALS, *TRAIN_BASICS, *(row for _, group in TRAIN_GROUPS for row in group)]
    return [setting for row in rows for setting in row]


def training_defaults() -> dict[str, Any]:
    """`TrainingConfig`'s defaults by field; the two without one are empty."""
    config = TrainingConfig(name="-", images="-")
    return {**config.to_dict(), "name": "", "images": ""}


def draw(rows: Sequence[Row], values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Put `rows` on the page and return key -> component; `values` come before a setting's own default."""
    drawn: dict[str, Any] = {}
    for row in rows:
        if len(row) == 1:
            drawn[row[0].key] = component(row[0], values, prefix)
            continue
        with gr.Row(elem_classes=["ti-row"]):
            for setting in row:
                with gr.Column(min_width=150, elem_classes=["ti-cell"]):
                    drawn[setting.key] = component(setting, values, prefix)
    return drawn


def component(setting: Setting, values: Mapping[str, Any], prefix: str) -> Any:
    """One setting as a gradio component with the id `ti_<prefix>_<key>`."""
    value = values.get(setting.key, setting.value)
    options = {**setting.options, **values.get(f"{setting.key}_options", {})}
    common = {"label": setting.label, "info": setting.info or None, "elem_id": f"ti_{prefix}_{setting.key}"}
    make = _MAKERS[setting.kind]
    made = make(value, options, common)
    return compat.saved_as_ours(made) if setting.saved else compat.not_saved(made)


def _text(value: Any, options: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
    return gr.Textbox(value=str(value or ""), lines=1, max_lines=1, **options, **common)


def _lines(value: Any, options: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
    return gr.Textbox(value=str(value or ""), lines=2, max_lines=6, **options, **common)


def _whole(value: Any, options: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
    return gr.Number(value=int(value or 0), precision=0, **options, **common)


def _number(value: Any, options: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
    return gr.Number(value=float(value or 0), **options, **common)


def _slider(value: Any, options: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
    return gr.Slider(value=options["minimum"] if value is None else value, **options, **common)


def _check(value: Any, options: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
    return gr.Checkbox(value=bool(value), **options, **common)


def _checks(value: Any, options: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
    return gr.CheckboxGroup(value=list(value or ()), **options, **common)


def _choice(value: Any, options: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
    return gr.Dropdown(value=value, **options, **common)


def _open_choice(value: Any, options: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
    return gr.Dropdown(value=value, allow_custom_value=True, **options, **common)


_MAKERS = {
    "text": _text,
    "lines": _lines,
    "whole": _whole,
    "number": _number,
    "slider": _slider,
    "check": _check,
    "checks": _checks,
    "choice": _choice,
    "open_choice": _open_choice,
}
