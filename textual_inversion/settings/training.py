"""All settings of one training run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from textual_inversion.errors import ConfigError
from textual_inversion.settings.generation import CLIP_SKIP, GUIDANCE, SAMPLER, SAMPLER_STEPS, SEED, SIDE
from textual_inversion.settings.previews import check_prompts
from textual_inversion.settings.schedule import CosineSchedule, LearningRateSchedule, Schedule
from textual_inversion.settings.schema import AUTO, Settings, colour, setting, setting_of

LOSS_TYPES = ("log", "mse")
METHODS = ("pulled", "directional", "classic")
CLIP_MODES = ("off", "value", "norm")
#: Method -> its learning rate where `auto` is given: a share of a usual value in the checkpoint's token table for `pulled`, so that a
#: step means as much in every text encoder; radians for `directional`; AdamW's rate for `classic`.
LEARNING_RATES = {"pulled": 0.7, "directional": 0.4, "classic": 0.005}
#: Settings that embeddings trained together share.
_SHARED = ("clip_skip", "gradient_accumulation_steps", "gradient_checkpointing", "precision", "prediction_type", "device")
#: What a form begins with for checkpoints of full size.
FULL_SIZE = {"preview_every": 50, "copy_every": 100}
BOTH = "both"  # text encoders
SAMPLING_METHODS = ("once", "deterministic", "random")
PREDICTION_TYPES = ("auto", "epsilon", "v_prediction")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

EVALUATION_ROWS = 16  # pictures of an evaluation, each with noise of its own
_LEAST_EVALUATIONS = 12  # in a run that may end early by them
_EVALUATION_SHARE = 0.05  # of the time that evaluations may take
_USUAL_BATCH = 4  # for which the learning rates were chosen
PASSES_OF_A_STEP = 3  # the cost of a step in forward passes
#: The least steps of a run: at full size those of Directional Textual Inversion (arXiv 2512.13672), for the tiny checkpoint those of
#: docs/training.md, for classic training what guides recommend.
_LEAST_STEPS = {"full size": 400, "tiny": 150, "classic": 3000}
_MOST_STEPS = 4000  # that many pictures alone make a run longer than
_TIMES_SHOWN = 16  # how often each picture is shown at least
_CHANCE: dict[str, Any] = {"minimum": 0, "maximum": 1, "step": 0.05}
_EVERY: dict[str, Any] = {"minimum": 0, "maximum": 1_000_000}

_GROUPS = ("learning", "pictures", "prompts", "what a run leaves")
_learning, _pictures, _prompts, _output = (partial(setting, group=group) for group in _GROUPS)


def _schedule(text: Any) -> str:
    if str(text).strip().lower() != AUTO:
        LearningRateSchedule(text)
    return ""


def _pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        reason = f"Filename regex {pattern!r} is no pattern ({error}); mend it or leave it empty."
        raise ConfigError(reason, setting="filename_regex") from error
    return ""


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """The settings of one training run; all fields but two have a default.

    The declaration of each field describes it, and docs/settings.md lists all fields.

    Raises:
        ConfigError: with the name of the first setting that cannot be used.
    """

    GROUPS: ClassVar[tuple[str, ...]] = _GROUPS

    name: str = setting(
        label="Embedding",
        hint="The word to train. A new name is created first, as the Create tab says.",
        help="the embedding to train; it must exist (see `create_embedding`)",
        kind="open_choice",
        saved=False,
    )
    images: str = setting(
        label="Dataset directory",
        hint="5–20 sharp pictures of one subject: different angles, poses and backgrounds.",
        help="folder of training pictures; `.txt` files beside them are their captions",
        folder=True,
        metavar="DIR",
        saved=False,
    )
    subfolders: bool = _pictures(
        False,
        label="Read subfolders too",
        hint="One named 5_cats is shown 5 times as often.",
        help="read the folders inside it too; one named `5_cats` has its pictures shown 5 times as often as others",
        saved=False,
    )
    template: str = _prompts(
        "",
        label="Prompt template",
        hint="Sentences to train the word in; “filewords” ones use the captions.",
        help="file of prompts, one a line, with `[name]` and optionally `[filewords]`; empty = the shipped `subject_filewords.txt`",
        kind="choice",
        metavar="FILE",
    )
    steps: int | str = _learning(
        AUTO,
        minimum=1,
        maximum=1_000_000,
        word=AUTO,
        kind="text",
        label="Max steps",
        title="Max steps",
        hint="Earlier runs included. auto: mostly 400; 150 for the tiny checkpoint, 3000 for classic.",
        help="train until the embedding's own step reaches this number (optimizer steps, {minimum} or more). `auto` is 400, 150 for the"
        " tiny checkpoint and 3000 for `classic`; more where each picture would be shown less than 16 times, up to 4000",
        metavar="N",
        saved=False,
    )
    method: str = _learning(
        "pulled",
        choices=METHODS,
        label="Training method",
        hint="pulled: vectors stay as long as words, a fifth of the steps. directional: they only turn. classic: A1111's own.",
        help="`pulled` is AdamW that keeps the vectors near the length of real words, so that fewer steps are needed and prompts are"
        " followed; `directional` (arXiv 2512.13672) turns the vectors and keeps their length; `classic` is A1111's AdamW",
    )
    learning_rate: str | float = _learning(
        AUTO,
        label="Embedding Learning rate",
        hint="auto fits the method. Or a number, or stages: 0.005:300, 0.001",
        help="`auto`, a number, or A1111's schedule `0.005:100, 1e-3:1000, 1e-5` (rate:until step). Except for `classic` a single number"
        " falls along a cosine to a tenth. `auto` is 0.7 of a usual value in the token table for `pulled` (about 0.01 for SD1, 0.05 for"
        " the tiny checkpoint; for a batch above 4 divided by the root of batch / 4), 0.4 (an angle in radians) for `directional`, 0.005"
        " for `classic`. Higher learns faster and breaks sooner",
        metavar="RATE",
        rule=_schedule,
    )
    norm_factor: float = _learning(
        1.0,
        minimum=0.1,
        maximum=10,
        before="clip_mode",
        label="Length of the vectors",
        hint="1 is that of real words; classic ignores it.",
        help="length of new vectors as a multiple of the mean of the checkpoint's own words ({range}); `classic` ignores it",
    )
    evaluate_every: int | str = _learning(
        AUTO,
        minimum=0,
        maximum=1_000_000,
        word=AUTO,
        offered=(AUTO, "0", "10", "25", "50", "100"),
        before="clip_mode",
        label="Evaluate every N steps",
        title="Evaluate every N steps",
        hint="On pictures, noise and prompts that stay the same. auto: for a twentieth of the time; 0 = never.",
        help="steps between two evaluations on pictures, noise and prompts that stay the same; `auto` takes at most a"
        " twentieth of the time for them, 0 = none",
        metavar="N",
    )
    early_stop: bool = _learning(
        False,
        before="clip_mode",
        label="Stop when nothing more is learned",
        hint="Ends early when the evaluation no longer falls. Max steps is the limit. Not for classic.",
        help="end before `steps` when the evaluation falls no more; `classic` ignores it",
    )
    vocabulary_search: bool = _learning(
        True,
        before="clip_mode",
        label="Look for words on the way",
        hint="Early in the run, vectors become words of the checkpoint where those fit the pictures much better. classic ignores it.",
        help="after a sixth, a third and half of the steps, 25, 50 and 75 at most, replace vectors by words of the checkpoint where those"
        " fit the pictures much better; not in runs under 60 steps; `classic` ignores it",
    )
    train_encoders: str = _learning(
        BOTH,
        choices=(BOTH, "clip_l", "clip_g"),
        before="clip_mode",
        label="Text encoders",
        hint="Whose vectors learn. Only SDXL has two; with one of them, the other's vectors stay.",
        help="the text encoder whose vectors learn on SDXL, which has two; with `clip_l` or `clip_g` the vectors of the other one stay."
        " Other checkpoints have one, which learns in any case",
    )
    loss_type: str = _learning(
        "log",
        choices=LOSS_TYPES,
        before="clip_mode",
        label="Loss",
        hint="log: every noise level counts alike. mse: little noise counts most. classic ignores it.",
        help="`log` is the logarithm of each picture's mean squared error, so that every noise level counts alike; `mse` is that error"
        " itself, to which pictures with little noise give most, so that more are drawn with much noise. `classic` always uses `mse`",
    )
    prior: float = _learning(
        0.0,
        minimum=0,
        maximum=1,
        before="clip_mode",
        label="Pull towards the first words",
        hint="Directional only; 0 = off.",
        help="strength of the pull towards the initial words in directional training ({range}), κ of arXiv 2512.13672, which uses 0.0001",
    )
    batch_size: int = _learning(
        4,
        minimum=1,
        maximum=1024,
        label="Batch size",
        hint="More is smoother, slower and needs memory.",
        help="pictures in one forward pass ({minimum} or more). More is smoother, slower, and needs more memory",
    )
    gradient_accumulation_steps: int = _learning(
        1,
        minimum=1,
        maximum=1024,
        label="Gradient accumulation steps",
        hint="A larger batch without its memory.",
        help="forward passes averaged into one optimizer step ({minimum} or more): a larger batch without its memory",
    )
    gradient_checkpointing: str = _learning(
        "auto",
        choices=("auto", "on", "off"),
        label="Gradient checkpointing",
        hint="Less memory, two fifths slower. auto: only where the device needs it.",
        help="compute parts of the UNet again in the backward pass: less memory, about two fifths slower; `auto` where the device's memory"
        " needs it",
    )
    width: int = _pictures(
        512,
        **SIDE,
        label="Width",
        hint="As the checkpoint was made.",
        help="training width in pixels ({range}); pictures are resized and cropped to it",
        saved=False,
    )
    height: int = _pictures(
        512, **SIDE, label="Height", hint="Larger needs more memory.", help="training height in pixels ({range}), likewise", saved=False
    )
    buckets: bool = _pictures(
        False,
        label="Aspect buckets",
        hint="Several sizes of one area, so that little is cropped away.",
        help="train at several sizes of about width x height in area, so that little is cropped away; a batch has one size",
    )
    bucket_step: int = _pictures(
        64,
        minimum=8,
        maximum=64,
        multiple=8,
        label="Bucket step",
        hint="Sides are multiples of this; smaller crops less and mixes less.",
        help="sides of bucket sizes are multiples of this (a {range}); smaller crops less and mixes less",
    )
    no_resize: bool = _pictures(
        False,
        label="Do not resize images",
        hint="Each at its own size; large ones need memory.",
        help="train each picture at its own size, cut to multiples of 8 (sides of 64 to 2048); width and height go unused",
    )
    crops: int = _pictures(
        1,
        minimum=1,
        maximum=16,
        step=1,
        label="Crops of each picture",
        hint="Spread along the side that does not fit, one at random each time; 1 = the centre.",
        help="most crops of a picture ({range}), spread along the side that does not fit, one at random each time; 1 = the centre",
    )
    flip: bool = _pictures(
        False,
        label="Flip pictures at random",
        hint="Shows each mirrored half of the time.",
        help="show each picture mirrored half of the time; not for text or faces that must keep their side",
    )
    clip_mode: str = _learning(
        "off",
        choices=CLIP_MODES,
        label="Gradient Clipping",
        hint="Holds single steps back.",
        help="gradient clipping `off`, by `value` or by `norm` (of the unscaled gradient)",
    )
    clip_schedule: str | float = _learning(
        "1.0",
        label="Gradient clipping bound",
        hint="A number, or staged like the learning rate.",
        help="the clipping bound, a number or a schedule like `learning_rate`'s",
        metavar="RATE",
    )
    weight_decay: float = _learning(
        0.0,
        minimum=0,
        maximum=10,
        label="Weight decay",
        hint="Pulls the vectors towards zero; 0 = off.",
        help="AdamW's decoupled weight decay ({minimum} or more); pulls vectors towards zero",
    )
    alpha_weight: bool = _pictures(
        False,
        label="Use PNG alpha channel as loss weight",
        hint="Or NAME-mask.png beside it: white counts.",
        help="the loss counts where a picture is opaque, or where `NAME-mask.png` beside it is white (mean 1)",
    )
    background: str = _pictures(
        "white",
        label="Colour under transparency",
        hint="A name, or #rrggbb.",
        help="colour under what is transparent, such as `white` or `#808080`",
        rule=colour,
    )
    latent_cache: str = _pictures(
        "",
        label="Latent cache directory",
        hint="Saves encoding next time; empty = off.",
        help="folder that keeps encoded pictures for later runs (4 GB at most, the least used go first); empty = none",
        folder=True,
        metavar="DIR",
        saved=False,
    )
    latent_sampling: str = _pictures(
        "once",
        choices=SAMPLING_METHODS,
        label="Choose latent sampling method",
        hint="once: one latent for each picture. random: a fresh one each time.",
        help="`once` (one latent a picture, fixed), `deterministic` (the mean), `random` (a fresh sample each time)",
    )
    filename_regex: str = _prompts(
        "",
        label="Filename word regex",
        hint="For pictures without a .txt: which parts of the file name are words; empty = all of it.",
        help="which parts of a file name are words of its caption, for pictures without a `.txt`; empty = the whole name",
        rule=_pattern,
        saved=False,
    )
    filename_join: str = _prompts(
        " ",
        label="Filename join string",
        hint="What stands between those words.",
        help="what stands between those words",
        verbatim=True,
        saved=False,
    )
    shuffle_tags: bool = _prompts(
        False,
        label="Shuffle tags by ',' when creating prompts.",
        hint="So that no order is learned.",
        help="shuffle the comma-separated tags of a caption each time",
    )
    tag_dropout: float = _prompts(
        0.0,
        **_CHANCE,
        label="Drop out tags when creating prompts.",
        hint="Chance of leaving out each.",
        help="chance ({range}) of leaving out each tag",
    )
    keep_tags: int = _prompts(
        0,
        minimum=0,
        maximum=1000,
        label="Keep the first N tags",
        hint="Neither shuffled nor dropped: what every picture is about.",
        help="this many tags at the beginning of a caption are neither shuffled nor left out ({range})",
    )
    caption_dropout: float = _prompts(
        0.0,
        **_CHANCE,
        label="Drop out whole captions",
        hint="Trains the name without other words now and then.",
        help="chance ({range}) of leaving out the whole caption, so that the name alone has to do",
    )
    clip_skip: int = _prompts(
        1,
        **CLIP_SKIP,
        label="Clip skip in training",
        hint="As you draw with; 1 = none.",
        help="layers left out at the end of the text encoder, counted as A1111 does (1 = none left out, up to {maximum})",
        saved=False,
    )
    seed: int = _learning(
        0,
        **SEED,
        before="clip_mode",
        label="Training seed",
        hint="The same seed gives the same vectors on the same device.",
        help="seeds data order, noise, timesteps and flips ({range}); the same seed gives the same vectors on the same device",
    )
    precision: str = setting(
        "auto",
        choices=PRECISIONS,
        label="Precision",
        hint="Of the frozen model; vectors are always fp32.",
        help="compute type of the frozen model: `auto` is bf16 where CUDA has it, else fp16 on CUDA; elsewhere fp32, or bf16 for a large"
        " model on a processor that is faster in it",
    )
    prediction_type: str = setting(
        "auto",
        choices=PREDICTION_TYPES,
        label="Prediction type",
        hint="Of the checkpoint; auto finds out.",
        help="what the checkpoint's UNet predicts: `epsilon` (the noise) or `v_prediction`; `auto` asks the file, the .yaml beside it, and"
        " the UNet",
        saved=False,
    )
    device: str = setting(
        "",
        label="Device",
        hint="cuda, cuda:1, mps, cpu; empty = the best there is.",
        help="torch device such as `cuda`, `cuda:1`, `cpu`; empty = the best there is",
        metavar="DEVICE",
        saved=False,
    )
    copy_every: int = _output(
        0,
        **_EVERY,
        label="Save a copy of embedding to log directory every N steps, 0 to disable",
        hint="To go back to.",
        help="save a numbered copy of the embedding every N steps (0 = never)",
    )
    preview_every: int = _output(
        0,
        **_EVERY,
        label="Save an image to log directory every N steps, 0 to disable",
        hint="Previews.",
        help="draw a preview picture every N steps (0 = never)",
        saved=False,
    )
    preview_prompt: str = _output(
        "",
        label="Preview prompt",
        hint="One a line, each a row of previews; “--n blurry --d 7” gives a line a negative prompt and a seed of its own."
        " [name] stands for the word; empty = a sentence of the template.",
        help="prompts of the previews, one a line, at most six; a line may end with a negative prompt and a seed of its own, as in"
        " `a cat --n blurry --d 7`; empty = a prompt from the template, `[name]` is filled in",
        kind="lines",
        rule=check_prompts,
        saved=False,
    )
    preview_negative_prompt: str = _output(
        "",
        label="Preview negative prompt",
        hint="What previews must not show.",
        help="negative prompt of the preview",
        kind="lines",
        saved=False,
    )
    preview_steps: int = _output(
        20, **SAMPLER_STEPS, label="Preview sampling steps", hint="Fewer draw faster.", help="sampler steps of the preview ({range})"
    )
    preview_cfg_scale: float = _output(
        7.0, **GUIDANCE, label="Preview CFG Scale", hint="How closely it follows.", help="guidance of the preview ({range})"
    )
    preview_seed: int = _output(
        0,
        **SEED,
        label="Preview seed",
        hint="Fixed, so that previews can be compared.",
        help="seed of the preview, fixed so that previews can be compared",
    )
    preview_sampler: str = _output(
        "DPM++ 2M Karras",
        **SAMPLER,
        label="Preview sampling method",
        hint="What you draw with.",
        help="A1111's name of the preview's sampler; without a schedule in the name, A1111's automatic one",
    )
    preview_width: int = _output(
        0,
        **SIDE,
        zero="the training width",
        label="Preview width",
        hint="0 = the training width.",
        help="width of the preview in pixels ({range}); 0 = the training width",
    )
    preview_height: int = _output(
        0,
        **SIDE,
        zero="the training height",
        label="Preview height",
        hint="0 = the training height.",
        help="height of the preview, likewise",
    )
    save_optimizer: bool = _learning(
        False,
        label="Save the optimizer's state",
        hint="Beside the embedding, as X.optim; a later run goes on from it, and so can A1111's own trainer.",
        help="keep the optimizer's state in `<file>.optim` beside the embedding, as A1111 does, and go on from it",
        saved=False,
    )
    csv_every: int = _output(
        1,
        **_EVERY,
        before="copy_every",
        label="Write the loss table every N steps, 0 to disable",
        hint="loss.csv in the log directory.",
        help="write a row of the loss table every N steps (0 = never)",
        saved=False,
    )
    log_dir: str = _output(
        "",
        before="csv_every",
        label="Log directory",
        hint="Each run gets a folder of its own in it.",
        help="folder for copies, previews and the loss table; empty = none are written",
        folder=True,
        metavar="DIR",
        saved=False,
    )

    @property
    def total_steps(self) -> int:
        """`steps` as a number. A run knows it from when its pictures are listed, see `with_steps`.

        Raises:
            ConfigError: `steps` is still `auto`.
        """
        if self.steps == AUTO:
            raise ConfigError("The number of steps is still automatic; it is chosen once the pictures are known.", setting="steps")
        return int(self.steps)

    def with_steps(self, pictures: int, *, full_size: bool) -> TrainingConfig:
        """The settings with a number of steps that fits, where that was left to `auto`.

        Args:
            pictures: how many one epoch shows.
            full_size: whether the checkpoint is larger than the tiny one that ships.
        """
        if self.steps != AUTO:
            return self
        least = _LEAST_STEPS["classic" if self.method == "classic" else "full size" if full_size else "tiny"]
        needed = math.ceil(_TIMES_SHOWN * pictures / (self.batch_size * self.gradient_accumulation_steps))
        return replace(self, steps=max(least, min(needed, _MOST_STEPS)))

    def rates(self, first_step: int, word_scale: float) -> Schedule:
        """The learning rate of each step of a run that begins after `first_step`.

        Args:
            word_scale: root of the mean square of the values in the checkpoint's token table.
        """
        text = str(self.learning_rate).strip().lower()
        if text == AUTO:
            text = repr(LEARNING_RATES[self.method] * (word_scale * self._large_batch_factor if self.method == "pulled" else 1.0))
        written = LearningRateSchedule(text)
        if self.method != "classic" and ":" not in text:
            return CosineSchedule(written.parts[0][0], first_step, self.total_steps)
        return written

    @property
    def _large_batch_factor(self) -> float:
        """Factor of the rate. The gradients of a large batch agree more, so that the same rate moves the vectors further with each step."""
        return math.sqrt(min(1.0, _USUAL_BATCH / (self.batch_size * self.gradient_accumulation_steps)))

    @property
    def evaluation_interval(self) -> int:
        """Steps between two evaluations; 0 = none. Where that is left to `auto`, evaluations take a twentieth of the time at most."""
        if self.evaluate_every != AUTO:
            return int(self.evaluate_every)
        rows = math.ceil(EVALUATION_ROWS / self.batch_size) * self.batch_size  # whole batches
        cost = rows / PASSES_OF_A_STEP / (self.batch_size * self.gradient_accumulation_steps)
        every = math.ceil(cost / _EVALUATION_SHARE)
        return max(1, min(every, self.total_steps // _LEAST_EVALUATIONS)) if self.early_stop else every

    def check_together(self) -> None:
        """Refuse two ways of sizing pictures at once, and a clipping bound that is needed and does not parse."""
        if self.early_stop and self.evaluate_every == 0:
            reason = "Without evaluations nothing tells when to stop; evaluate every few steps, or do not stop early."
            raise ConfigError(reason, setting="evaluate_every")
        if self.buckets and self.no_resize:
            reason = "Buckets resize pictures and “no resize” keeps their size; choose one of the two."
            raise ConfigError(reason, setting="no_resize")
        if self.clip_mode != "off":
            LearningRateSchedule(self.clip_schedule, "clip schedule")


def check_trained_together(configs: Sequence[TrainingConfig]) -> None:
    """Check the settings of embeddings that are trained in one run.

    Raises:
        ConfigError: none, a name twice, or a setting that all share differs.
    """
    names = [config.name for config in configs]
    if not names:
        raise ConfigError("Give at least one embedding to train.", setting="name")
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ConfigError(f"{twice!r} is given twice; each embedding can be trained once in a run.", setting="name")
    for name in _SHARED:
        values = list(dict.fromkeys(getattr(config, name) for config in configs))
        if len(values) > 1:
            label = setting_of(TrainingConfig, name).label
            sentence = f"“{label}” is {values[0]!r} for one embedding and {values[1]!r} for another; give all the same."
            raise ConfigError(sentence, setting=name)
