"""All settings of one training run, validated. Knows nothing of models, devices or pages."""

from __future__ import annotations

import re
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from textual_inversion.errors import ConfigError
from textual_inversion.settings.schedule import LearningRateSchedule

CLIP_MODES = ("off", "value", "norm")
SAMPLING_METHODS = ("once", "deterministic", "random")
PREVIEW_SAMPLERS = ("Euler", "Euler a", "DPM++ 2M Karras")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class TrainingConfig:
    """What one training run does; every field has a default except the two that nobody can guess.

    Attributes:
        name: the embedding to train; it must exist (see `create_embedding`).
        images: folder of training pictures; `.txt` files beside them are their captions.
        subfolders: read the folders inside it too; one named `5_cats` has its pictures shown 5 times as often as others.
        template: file of prompts, one a line, with `[name]` and optionally `[filewords]`; empty = the shipped `subject_filewords.txt`.
        steps: train until the embedding's own step reaches this number (optimizer steps, 1 or more).
        learning_rate: a number or A1111's schedule `0.005:100, 1e-3:1000, 1e-5` (rate:until step). Higher learns faster and breaks sooner.
        batch_size: pictures in one forward pass (1 or more). More is smoother, slower, and needs more memory.
        gradient_accumulation_steps: forward passes averaged into one optimizer step (1 or more): a larger batch without its memory.
        width: training width in pixels (multiple of 8, 64 to 2048); pictures are resized and cropped to it.
        height: training height in pixels, likewise.
        buckets: train at several sizes of about width x height in area, so that little is cropped away; a batch has one size.
        bucket_step: sides of bucket sizes are multiples of this (a multiple of 8, 8 to 64); smaller crops less and mixes less.
        no_resize: train each picture at its own size, cut to multiples of 8 (sides of 64 to 2048); width and height go unused.
        crops: most crops of a picture (1 to 16), spread over what stands out, one at random each time; 1 = the centre.
        flip: show each picture mirrored half of the time; not for text or faces that must keep their side.
        clip_mode: gradient clipping `off`, by `value` or by `norm` (of the unscaled gradient).
        clip_schedule: the clipping bound, a number or a schedule like `learning_rate`'s.
        weight_decay: AdamW's decoupled weight decay (0 or more); pulls vectors towards zero.
        alpha_weight: the loss counts where a picture is opaque, or where `NAME-mask.png` beside it is white (mean 1).
        background: colour under what is transparent, such as `white` or `#808080`.
        latent_cache: folder that keeps encoded pictures for later runs (4 GB at most, the least used go first); empty = none.
        latent_sampling: `once` (one latent a picture, fixed), `deterministic` (the mean), `random` (a fresh sample each time).
        filename_regex: which parts of a file name are words of its caption, for pictures without a `.txt`; empty = the whole name.
        filename_join: what stands between those words.
        shuffle_tags: shuffle the comma-separated tags of a caption each time.
        tag_dropout: chance (0 to 1) of leaving out each tag.
        keep_tags: this many tags at the beginning of a caption are neither shuffled nor left out (0 to 1000).
        caption_dropout: chance (0 to 1) of leaving out the whole caption, so that the name alone has to do.
        clip_skip: layers left out at the end of the text encoder, counted as A1111 does (1 = none left out, up to 12).
        seed: seeds data order, noise, timesteps and flips (0 to 2**32 - 1); the same seed gives the same vectors on the same device.
        precision: compute type of the frozen model: `auto` is bf16 where CUDA has it, else fp16 on CUDA, fp32 elsewhere.
        device: torch device such as `cuda`, `cuda:1`, `cpu`; empty = the best there is.
        copy_every: save a numbered copy of the embedding every N steps (0 = never).
        preview_every: draw a preview picture every N steps (0 = never).
        preview_prompt: prompt of the preview; empty = a prompt from the template, `[name]` is filled in.
        preview_negative_prompt: negative prompt of the preview.
        preview_steps: sampler steps of the preview (1 to 150).
        preview_cfg_scale: guidance of the preview (1 to 30).
        preview_seed: seed of the preview, fixed so that previews can be compared.
        preview_sampler: sampler of the preview: `Euler`, `Euler a` or `DPM++ 2M Karras`.
        preview_width: width of the preview in pixels (multiple of 8, 64 to 2048); 0 = the training width.
        preview_height: height of the preview, likewise.
        save_optimizer: keep the optimizer's state in `<file>.optim` beside the embedding, as A1111 does, and go on from it.
        csv_every: write a row of the loss table every N steps (0 = never).
        log_dir: folder for copies, previews and the loss table; empty = none are written.
    """

    name: str
    images: str
    subfolders: bool = False
    template: str = ""
    steps: int = 300
    learning_rate: str = "0.005"
    batch_size: int = 4
    gradient_accumulation_steps: int = 1
    width: int = 512
    height: int = 512
    buckets: bool = False
    bucket_step: int = 64
    no_resize: bool = False
    crops: int = 1
    flip: bool = False
    clip_mode: str = "off"
    clip_schedule: str = "1.0"
    weight_decay: float = 0.0
    alpha_weight: bool = False
    background: str = "white"
    latent_cache: str = ""
    latent_sampling: str = "once"
    filename_regex: str = ""
    filename_join: str = " "
    shuffle_tags: bool = False
    tag_dropout: float = 0.0
    keep_tags: int = 0
    caption_dropout: float = 0.0
    clip_skip: int = 1
    seed: int = 0
    precision: str = "auto"
    device: str = ""
    copy_every: int = 0
    preview_every: int = 0
    preview_prompt: str = ""
    preview_negative_prompt: str = ""
    preview_steps: int = 20
    preview_cfg_scale: float = 7.0
    preview_seed: int = 0
    preview_sampler: str = "DPM++ 2M Karras"
    preview_width: int = 0
    preview_height: int = 0
    save_optimizer: bool = False
    csv_every: int = 1
    log_dir: str = ""

    def __post_init__(self) -> None:
        """Raise `ConfigError` naming the first field outside its range."""
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ConfigError(f"{_label(name)} is {str(value)[:40]}; it must be from {low} to {high}.")
        for name in _WHOLE:
            if not isinstance(getattr(self, name), int):
                raise ConfigError(f"{_label(name)} is {getattr(self, name)!r}; it must be a whole number.")
        for name in ("width", "height", "preview_width", "preview_height"):
            if getattr(self, name) % 8 or (name.startswith("preview") and 0 < getattr(self, name) < 64):
                raise ConfigError(f"{_label(name)} is {getattr(self, name)}; it must be a multiple of 8, at least 64.")
        for name, choices in (
            ("clip_mode", CLIP_MODES),
            ("latent_sampling", SAMPLING_METHODS),
            ("precision", PRECISIONS),
            ("preview_sampler", PREVIEW_SAMPLERS),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{_label(name)} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}.")
        if self.bucket_step % 8:
            raise ConfigError(f"Bucket step is {self.bucket_step}; it must be a multiple of 8.")
        if self.buckets and self.no_resize:
            raise ConfigError("Buckets resize pictures and “no resize” keeps their size; choose one of the two.")
        _check_pattern(self.filename_regex)
        _check_background(self.background)
        LearningRateSchedule(self.learning_rate)
        if self.clip_mode != "off":
            LearningRateSchedule(self.clip_schedule, "clip schedule")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """Build from a plain dict, as read from JSON; unknown and missing keys raise `ConfigError` by name."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"Unknown setting {unknown[0]!r}; the settings are {', '.join(sorted(known))}.")
        if missing := [field.name for field in fields(cls) if field.default is MISSING and field.name not in values]:
            raise ConfigError(f"The setting {missing[0]!r} is missing; {' and '.join(missing)} must be given, all others have a default.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a plain dict that JSON can hold."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("steps", 1, 1_000_000),
    ("batch_size", 1, 1024),
    ("gradient_accumulation_steps", 1, 1024),
    ("width", 64, 2048),
    ("height", 64, 2048),
    ("weight_decay", 0, 10),
    ("bucket_step", 8, 64),
    ("crops", 1, 16),
    ("tag_dropout", 0, 1),
    ("keep_tags", 0, 1000),
    ("caption_dropout", 0, 1),
    ("clip_skip", 1, 12),
    ("seed", 0, 2**32 - 1),
    ("copy_every", 0, 1_000_000),
    ("preview_every", 0, 1_000_000),
    ("preview_steps", 1, 150),
    ("preview_cfg_scale", 1, 30),
    ("preview_seed", 0, 2**32 - 1),
    ("preview_width", 0, 2048),
    ("preview_height", 0, 2048),
    ("csv_every", 0, 1_000_000),
)
_WHOLE = tuple(name for name, _, _ in _RANGES if name not in ("weight_decay", "tag_dropout", "caption_dropout", "preview_cfg_scale"))


def _check_background(colour: str) -> None:
    if colour == TrainingConfig.background:
        return  # a machine that only trains, without Pillow, has the default
    from textual_inversion.pictures.colours import check_colour

    check_colour(colour)


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"Filename regex {pattern!r} is no pattern ({error}); mend it or leave it empty.") from error


def _label(name: str) -> str:
    return name.replace("_", " ").capitalize()
