"""The forms of the tabs: the position of each setting, and its gradio component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.preprocessing import PreprocessConfig
from textual_inversion.settings.schema import Setting, Settings, defaults_of, settings_of
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.ui import compat

Row = tuple[Setting, ...]  # settings side by side


@dataclass(frozen=True)
class Section:
    """A part of a form.

    Attributes:
        title: its heading.
        rows: names of settings, row by row.
        groups: groups of settings that belong here, except settings that a row of any section names.
    """

    title: str
    rows: tuple[str, ...]
    groups: tuple[str, ...] = ()


PREVIEWS = "Previews and copies"
ALWAYS_OPEN = ("word", "pictures", "basics", "source", "result")
AS_TXT2IMG = Setting(
    name="as_txt2img",
    types=(bool,),
    default=False,
    label="Read parameters (prompt, etc...) from txt2img tab when making previews",
    hint="Instead of the preview settings above; as they are when Train is pressed.",
)
#: Settings that exist only on the page of the Preprocess tab.
USE_RESULT = Setting(
    name="use_result", types=(bool,), default=True, label="Train on the result", hint="Points the Train tab at the destination."
)
MAY_DOWNLOAD = Setting(
    name="may_download",
    types=(bool,),
    default=False,
    label="Download the BLIP model if it is missing",
    hint="About 1 GB, once.",
    saved=False,
)

_CREATE = (Section("", ("name", "initializer_text", "num_vectors", "overwrite")),)
_TRAIN = (
    Section("word", ("name",)),
    Section("pictures", ("images",)),
    Section("basics", ("steps learning_rate batch_size",)),
    Section(
        "Prompts and captions",
        ("template", "filename_regex filename_join", "shuffle_tags tag_dropout", "keep_tags caption_dropout"),
        ("prompts",),
    ),
    Section(
        "Pictures and crops",
        ("buckets no_resize", "bucket_step crops", "alpha_weight background", "subfolders latent_cache"),
        ("pictures",),
    ),
    Section(
        PREVIEWS,
        (
            *("preview_every copy_every", "preview_prompt", "preview_negative_prompt", "preview_steps preview_cfg_scale"),
            *("preview_sampler preview_width preview_height", "preview_seed csv_every", "log_dir"),
        ),
        ("what a run leaves",),
    ),
    Section(
        "How it learns",
        (
            *("method", "norm_factor prior", "save_optimizer", "gradient_accumulation_steps weight_decay"),
            *("clip_mode clip_schedule", "latent_sampling flip"),
            "clip_skip seed",
        ),
        ("learning",),
    ),
    Section("Size and device", ("width height", "precision device", "gradient_checkpointing prediction_type"), ("",)),
)
_PREPROCESS = (
    Section("source", ("source",)),
    Section("result", ("destination", "width height", "resize flips", "use_result"), ("size", "copies", "")),
    Section("Focal point crop", ("focal_crop focal_debug", "face_weight entropy_weight edges_weight"), ("focal-point crop",)),
    Section("Split oversized images", ("split", "split_threshold split_overlap"), ("splitting",)),
    Section(
        "Auto-sized crop",
        ("auto_size", "min_side max_side side_step", "min_area max_area", "objective error_threshold"),
        ("auto-sized crop",),
    ),
    Section(
        "Captions",
        (
            *("captioners", "existing_captions caption_place", "caption_prefix caption_suffix caption_join", "drop_words"),
            *("blip_model may_download", "tagger_folder tag_threshold", "captions_only"),
        ),
        ("captions",),
    ),
    Section("Reading", ("exif transparency background",), ("reading",)),
)
_TXT2IMG = (
    Section("prompt", ("prompt",)),
    Section("negative prompt", ("negative_prompt",)),
    Section("settings", ("sampler seed", "steps cfg_scale", "width height", "count")),
)


def create_rows() -> list[Row]:
    """The Create tab."""
    return lay_out(NewEmbedding, _CREATE)[""]


def train_sections(settings: type[Settings] = TrainingConfig) -> dict[str, list[Row]]:
    """The Train tab: `word`, `pictures` and `basics` are always open, the others fold under their titles."""
    return lay_out(settings, _TRAIN)


def preprocess_sections(settings: type[Settings] = PreprocessConfig) -> dict[str, list[Row]]:
    """The Preprocess tab: `source` and `result` are always open, the others fold under their titles."""
    return lay_out(settings, _PREPROCESS, (USE_RESULT, MAY_DOWNLOAD))


def txt2img_sections(settings: type[Settings] = GenerationSettings) -> dict[str, list[Row]]:
    """The txt2img page: `prompt`, `negative prompt` and `settings`."""
    return lay_out(settings, _TXT2IMG)


def lay_out(settings: type[Settings], sections: Sequence[Section], own: Sequence[Setting] = ()) -> dict[str, list[Row]]:
    """Title -> rows of a form.

    A setting that no row names gets its own row in the section of its group, below the setting declared before it. If no section
    has its group, the form does not show it.

    Args:
        own: settings of the page itself, which rows may name.
    """
    known = {each.name: each for each in (*settings_of(settings), *own)}
    rows = {section.title: [row.split() for row in section.rows] for section in sections}
    named = {name for section in rows.values() for row in section for name in row}
    for each in settings_of(settings):
        section = next((section for section in sections if each.group in section.groups), None)
        if each.name not in named and section:
            place = _place_for(each, rows[section.title], [other.name for other in settings_of(settings)])
            rows[section.title].insert(place, [each.name])
    return {title: [tuple(known[name] for name in row) for row in section] for title, section in rows.items()}


def _place_for(setting: Setting, rows: Sequence[Sequence[str]], declared: Sequence[str]) -> int:
    """Index of the row below the nearest setting that is declared before this one; 0 where there is none."""
    for name in reversed(declared[: declared.index(setting.name)]):
        for place, row in enumerate(rows):
            if name in row:
                return place + 1
    return 0


def preprocess_values(destination: str, width: int, height: int, captioners: Sequence[str]) -> dict[str, Any]:
    """Values of the Preprocess tab: the defaults, the destination, and the names of the captioners."""
    lists = {"flips": [], "captioners": [], "captioners_options": {"choices": list(captioners)}}
    return {**defaults_of(PreprocessConfig), **lists, "destination": destination, "width": width, "height": height}


def group_of(setting: str, *, preprocess: bool = False) -> str:
    """The title of the group that folds a setting of the Train or Preprocess tab away; empty where it is always open."""
    for title, rows in (preprocess_sections() if preprocess else train_sections()).items():
        if title not in ALWAYS_OPEN and any(each.name == setting for row in rows for each in row):
            return title
    return ""


def draw(rows: Sequence[Row], values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Put `rows` on the page and return name -> component; `values` override the defaults of settings."""
    drawn: dict[str, Any] = {}
    for row in rows:
        if len(row) == 1:
            drawn[row[0].name] = component(row[0], values, prefix)
            continue
        with gr.Row(elem_classes=["ti-row"]):
            for setting in row:
                with gr.Column(min_width=150, elem_classes=["ti-cell"]):
                    drawn[setting.name] = component(setting, values, prefix)
    return drawn


def component(setting: Setting, values: Mapping[str, Any], prefix: str) -> Any:
    """One setting as a gradio component with the id `ti_<prefix>_<name>`; `values` may hold further keywords as `<name>_options`."""
    value = values.get(setting.name, None if setting.required else setting.default)
    kind = kind_of(setting)
    options = {**_options(setting, kind), **values.get(f"{setting.name}_options", {})}
    common = {"label": setting.label, "info": setting.hint or None, "elem_id": f"ti_{prefix}_{setting.name}"}
    drawn = _MAKERS[kind](value, options, common)
    return compat.saved_as_ours(drawn) if setting.saved else compat.not_saved(drawn)


def kind_of(setting: Setting) -> str:
    """Which component draws a setting: one of the keys of `_MAKERS`."""
    if setting.kind or setting.offered:
        return setting.kind or "open_choice"
    if setting.type in (int, float) and setting.slider_step:
        return "slider"
    if setting.type is str and setting.choices:
        return "choice"
    return {bool: "check", tuple: "checks", int: "whole", float: "number", str: "text"}[setting.type]


def _options(setting: Setting, kind: str) -> dict[str, Any]:
    if kind == "slider":
        return {"minimum": setting.lowest, "maximum": setting.maximum, "step": setting.slider_step}
    listed = setting.choices or setting.offered
    return {"choices": list(listed)} if listed else {}


def _text(value: Any, options: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
    return gr.Textbox(value=str(value or ""), lines=1, max_lines=1, **options, **common)


def _lines(value: Any, options: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
    return gr.Textbox(value=str(value or ""), lines=2, max_lines=6, **options, **common)


def _number(value: Any, options: Mapping[str, Any], common: Mapping[str, Any]) -> Any:
    """A box for text, so that what was typed is judged: gradio's own box for numbers rounds 1.7, and changes a long seed."""
    return gr.Textbox(value=str(0 if value is None or value == "" else value), lines=1, max_lines=1, **options, **common)


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
    "whole": _number,
    "number": _number,
    "slider": _slider,
    "check": _check,
    "checks": _checks,
    "choice": _choice,
    "open_choice": _open_choice,
}
