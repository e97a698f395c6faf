"""Judges pictures of the drawn world: names the contents, and checks them against the concept and against the rest of the prompt.

The method is analysis by synthesis. The border gives the background, and the pixels that differ from it give the object's box. Every
colour, shape and pattern is then drawn into this box. The closest drawing names the contents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from textual_inversion.demo.world import COLOURS, PATTERNS, SHAPES, SIZE, Scene, ink, template
from textual_inversion.diffusion.generate import draw_prompts
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.embedding import Embedding
from textual_inversion.settings.generation import GenerationSettings

_GRID = 32  # pixels of the normalised object box, both sides
_NAMES = tuple(COLOURS)
_MOST_UNEXPLAINED = 0.5  # share of the object that the closest drawing may fail to explain
_BATCH = 12  # pictures drawn together


@dataclass(frozen=True)
class Setting:
    """The rest of a prompt: a background and a position."""

    background: str
    position: str = "centre"

    def prompt(self, name: str) -> str:
        """The prompt that puts `name` into this setting."""
        place = "" if self.position == "centre" else f" on the {self.position}"
        return f"a picture of {name}{place}, {self.background} background"


@dataclass(frozen=True)
class Scores:
    """How well an embedding does.

    Attributes:
        concept: share of pictures (0 to 1) whose shape, colour and pattern are all the concept's.
        prompt_following: share of pictures whose background and position are both those of the prompt.
        pictures: the judged pictures, in the order of the settings.
    """

    concept: float
    prompt_following: float
    pictures: tuple[Image.Image, ...]


def settings_for(concept: Scene) -> list[Setting]:
    """Every background that differs enough from the concept, at each position: 24 settings."""
    grounds = [colour for colour in COLOURS if colour != concept.colour]
    return [Setting(ground, position) for ground in grounds for position in ("centre", "left", "right")]


def judge(
    model: StableDiffusion,
    name: str,
    embeddings: Mapping[str, Embedding],
    concept: Scene,
    settings: Sequence[Setting],
    *,
    seed: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Draw `name` (an embedding or plain words) once in each setting and score the pictures."""
    sampling = GenerationSettings(prompt="", steps=20, cfg_scale=4.0, width=SIZE, height=SIZE)
    pictures: list[Image.Image] = []
    for start in range(0, len(settings), _BATCH):
        part = settings[start : start + _BATCH]
        prompts = [(setting.prompt(name), seed + start + index) for index, setting in enumerate(part)]
        pictures += draw_prompts(model, prompts, sampling, embeddings)
        if progress:
            progress(len(pictures), len(settings))
    seen = [look(picture) for picture in pictures]
    return Scores(
        concept=sum(shows(concept, sighting) for sighting in seen) / len(seen),
        prompt_following=sum(follows(setting, sighting) for setting, sighting in zip(settings, seen)) / len(seen),
        pictures=tuple(pictures),
    )


def shows(concept: Scene, seen: Sighting) -> bool:
    """Whether shape, colour and pattern are those of the concept."""
    return (seen.shape, seen.colour, seen.pattern) == (concept.shape, concept.colour, concept.pattern)


def follows(setting: Setting, seen: Sighting) -> bool:
    """Whether background and position are those of the setting."""
    return (seen.background, seen.position) == (setting.background, setting.position)


@dataclass(frozen=True)
class Sighting:
    """What a picture shows. Fields as in `world.Scene`; `shape` and the others are empty when no object is recognised."""

    background: str
    shape: str = ""
    colour: str = ""
    pattern: str = ""
    position: str = ""


def look(picture: Image.Image) -> Sighting:
    """Name the contents of `picture` (any size, RGB)."""
    pixels = np.asarray(picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32)  # H W 3
    border = np.concatenate(
        [pixels[:6].reshape(-1, 3), pixels[-6:].reshape(-1, 3), pixels[:, :4].reshape(-1, 3), pixels[:, -4:].reshape(-1, 3)]
    )
    ground = np.median(border, axis=0)
    background = _nearest_colour(ground)
    box = _object_box(pixels, ground)
    if box is None:
        return Sighting(background)
    whole = Image.fromarray(pixels.astype(np.uint8))
    unexplained, colour, shape, pattern = min(_closest(whole, ground, shifted, background) for shifted in _neighbours(box))
    if unexplained > _MOST_UNEXPLAINED:
        return Sighting(background)
    return Sighting(background, shape, colour, pattern, _position(box, shape))


def _position(box: tuple[int, int, int, int], shape: str) -> str:
    """The position of the middle of the shape's template. A moon's box has a different middle."""
    canvas = template(shape, PATTERNS[0])[0]
    left, _, right, _ = canvas.getbbox() or (0, 0, *canvas.size)
    scale = (box[2] - box[0]) / (right - left)
    middle = box[0] + (canvas.width / 2 - left) * scale - SIZE / 2
    return "left" if middle < -9 else "right" if middle > 9 else "centre"


def _nearest_colour(rgb: np.ndarray) -> str:
    return _NAMES[int(np.argmin([np.sum((rgb - np.array(COLOURS[name])) ** 2) for name in _NAMES]))]


def _object_box(pixels: np.ndarray, ground: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of the area that differs from the background; None when this area is too small."""
    differs = np.abs(pixels - ground).max(axis=-1) > 40
    columns, rows = np.flatnonzero(differs.sum(axis=0) >= 3), np.flatnonzero(differs.sum(axis=1) >= 3)
    if len(columns) < 24 or len(rows) < 24:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _neighbours(box: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    left, top, right, bottom = box
    grown = [(left - g, top - g, right + g, bottom + g) for g in (-2, 0, 2)]
    return [(a + dx, b + dy, c + dx, d + dy) for a, b, c, d in grown for dx, dy in ((0, 0), (2, 0), (-2, 0), (0, 2), (0, -2))]


def _closest(picture: Image.Image, ground: np.ndarray, box: tuple[int, int, int, int], background: str) -> tuple[float, str, str, str]:
    inside = max(0, box[0]), max(0, box[1]), min(SIZE, box[2]), min(SIZE, box[3])
    crop = np.asarray(picture.resize((_GRID, _GRID), Image.Resampling.BOX, box=inside), np.float32).reshape(-1, 3) - ground  # g*g 3
    cover, tone, sums = _templates()  # k g*g
    on_cover, on_tone = cover @ crop, tone @ crop  # k 3
    whole = max(float(np.square(crop).sum()), 1.0)
    best = (float("inf"), "", "", "")
    for name in _NAMES:
        if name == background:
            continue
        # a drawing minus the background is cover * a + tone * b; `errors` expands its squared distance to the crop
        body = np.array(COLOURS[name], np.float32)
        a, b = body - ground, ink(body, name) - body
        drawn = sums[0] * (a @ a) + sums[1] * (b @ b) + 2 * sums[2] * (a @ b)  # k
        errors = 1 + (drawn - 2 * (on_cover @ a) - 2 * (on_tone @ b)) / whole
        k = int(np.argmin(errors))
        best = min(best, (float(errors[k]), name, SHAPES[k // len(PATTERNS)], PATTERNS[k % len(PATTERNS)]))
    return best


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cover and covered second tone of each shape and pattern [k, g*g], cut to the shape's own box, and their sums of products [k]."""
    covers, tones = [], []
    for shape in SHAPES:
        for pattern in PATTERNS:
            alpha, tone = template(shape, pattern)
            box = alpha.getbbox() or (0, 0, *alpha.size)
            layers = (np.asarray(layer.resize((_GRID, _GRID), Image.Resampling.BOX, box=box), np.float32) / 255 for layer in (alpha, tone))
            cover, marked = (layer.reshape(-1) for layer in layers)
            covers.append(cover)
            tones.append(cover * marked)
    a, b = np.stack(covers), np.stack(tones)
    return a, b, ((a * a).sum(1), (b * b).sum(1), (a * b).sum(1))
