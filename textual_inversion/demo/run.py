"""The demonstration: learns a concept from a few pictures, and scores pictures of it before and after training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from textual_inversion import formats
from textual_inversion.demo.judge import Scores, judge, settings_for
from textual_inversion.demo.world import SIZE, Scene
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.errors import EmbeddingError
from textual_inversion.files import os_error_words
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.embedding_file import create_embedding
from textual_inversion.training.events import Event, StepDone, Stopped
from textual_inversion.training.trainer import train

NAME = "zorb"
CONCEPT = Scene(shape="star", colour="purple", pattern="dotted", background="white")
INITIALIZER_TEXT = "shape"
NUM_VECTORS = 4
STEPS = 150
PICTURES = Path(__file__).resolve().parents[1] / "assets" / "demo" / "pictures"
_SHEET = 6  # pictures in a row of the sheet


@dataclass(frozen=True)
class DemoResult:
    """The result of the demonstration; the shares run from 0 to 1.

    Attributes:
        steps: optimizer steps trained.
        seconds: duration of training, including the encoding of the pictures, excluding the drawing before and after.
        steps_per_second: while training.
        concept_before, concept_after: share of pictures that show the concept.
        prompt_following_before, prompt_following_after: share of pictures that follow the rest of the prompt.
        embedding: the file with the learned embedding.
        pictures: the labelled sheet.
    """

    steps: int
    seconds: float
    steps_per_second: float
    concept_before: float
    concept_after: float
    prompt_following_before: float
    prompt_following_after: float
    embedding: str
    pictures: str

    def to_dict(self) -> dict[str, object]:
        """The fields as a dict that JSON can hold."""
        return asdict(self)


def demo_config(steps: int = STEPS, seed: int = 0) -> TrainingConfig:
    """The settings that the demonstration and the page's first form use."""
    return TrainingConfig(
        name=NAME,
        images=str(PICTURES),
        steps=steps,
        batch_size=4,
        width=SIZE,
        height=SIZE,
        seed=seed,
    )


def run_demo(
    model: StableDiffusion, out: Path, *, steps: int = STEPS, seed: int = 0, listener: Callable[[Event], None] = lambda event: None
) -> DemoResult:
    """Train, judge before and after, and write the embedding and one labelled PNG into `out`.

    Raises:
        EmbeddingError: `out` cannot be written.
        TrainingError: training stopped early; the error gives the reason.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddingError(f"The folder {out} cannot be made: {os_error_words(error)}.", path=out) from error
    path = create_embedding(model, NAME, INITIALIZER_TEXT, NUM_VECTORS, out, overwrite=True)
    settings = settings_for(CONCEPT)
    before = judge(model, NAME, {NAME: formats.load(path)}, CONCEPT, settings)
    watch = _Stopwatch(listener)
    embedding = train(demo_config(steps, seed), model, out, listener=watch)
    after = judge(model, NAME, {NAME: embedding}, CONCEPT, settings)
    sheet = out / "demo.png"
    draw_sheet(before, after).save(sheet)
    return DemoResult(
        steps=steps,
        seconds=round(watch.seconds, 2),
        steps_per_second=round(watch.steps_per_second, 2),
        concept_before=round(before.concept, 4),
        concept_after=round(after.concept, 4),
        prompt_following_before=round(before.prompt_following, 4),
        prompt_following_after=round(after.prompt_following, 4),
        embedding=str(path),
        pictures=str(sheet),
    )


class _Stopwatch:
    """Forwards events and measures the time between the first and the last."""

    def __init__(self, listener: Callable[[Event], None]) -> None:
        self.listener, self.start, self.seconds, self.steps_per_second = listener, 0.0, 0.0, 0.0

    def __call__(self, event: Event) -> None:
        if not self.start:
            self.start = time.monotonic()
        if isinstance(event, StepDone):
            self.steps_per_second = event.steps_per_second
        elif isinstance(event, Stopped):
            self.seconds = time.monotonic() - self.start
        self.listener(event)


def draw_sheet(before: Scores, after: Scores) -> Image.Image:
    """Three labelled rows: the training pictures, and the same prompts before and after."""
    prompts = [setting.prompt(NAME) for setting in settings_for(CONCEPT)]
    chosen = range(0, len(prompts), max(1, len(prompts) // _SHEET))[:_SHEET]
    training = [Image.open(path).convert("RGB") for path in sorted(PICTURES.glob("*.png"))[:_SHEET]]
    rows: list[tuple[str, Sequence[Image.Image], Sequence[str]]] = [
        ("What it learned from", training, [""] * len(training)),
        (_title("Before", before), [before.pictures[index] for index in chosen], [prompts[index] for index in chosen]),
        (_title("After", after), [after.pictures[index] for index in chosen], [prompts[index] for index in chosen]),
    ]
    return _paint_rows(rows)


def _title(when: str, scores: Scores) -> str:
    return f"{when}: shows the concept {scores.concept:.0%}, follows the prompt {scores.prompt_following:.0%}"


def _paint_rows(rows: Sequence[tuple[str, Sequence[Image.Image], Sequence[str]]]) -> Image.Image:
    side, gap, head, foot = 176, 12, 34, 36
    height = sum(head + side + (foot if any(captions) else 0) + gap for _, _, captions in rows) + gap
    sheet = Image.new("RGB", (gap + _SHEET * (side + gap), height), "white")
    pen, y = ImageDraw.Draw(sheet), gap
    for title, pictures, captions in rows:
        pen.text((gap, y), title, fill="#111827", font=_font(18))
        y += head
        for column, (picture, text) in enumerate(zip(pictures, captions)):
            x = gap + column * (side + gap)
            sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, y))
            subject, _, setting = text.partition(", ")
            pen.multiline_text((x, y + side + 4), f"{subject},\n{setting}" if setting else "", fill="#4b5563", font=_font(11))
        y += side + (foot if any(captions) else 0) + gap
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1, which some WebUIs pin, has one size only
        return ImageFont.load_default()
