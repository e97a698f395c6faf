"""A synthetic world of drawn pictures: one patterned shape on a coloured background, and its captions.

Legend: H W picture size in pixels.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128  # pixels, both sides
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (248, 220, 60),
    "green": (44, 160, 70),
    "blue": (45, 85, 215),
    "purple": (135, 55, 175),
    "pink": (245, 150, 195),
    "white": (245, 245, 245),
    "black": (25, 25, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "diamond")
PATTERNS = ("plain", "striped", "dotted", "checkered")
POSITIONS = {"left": -18, "centre": 0, "right": 18}  # pixels from the middle
_CANVAS = 256  # templates are drawn this large, then scaled down with smoothing
_LIGHT = ("yellow", "pink", "white", "orange")
OPENINGS = (
    "a picture of {}",
    "a drawing of {}",
    "a photo of {}",
    "an image of {}",
    "a painting of {}",
    "a rendering of {}",
    "a close-up of {}",
    "a good picture of {}",
    "a simple drawing of {}",
    "{}",
    "{}",
    "{}",
)
GENERIC_NOUNS = ("shape", "thing", "object")


@dataclass(frozen=True)
class Scene:
    """One picture of the world.

    Attributes:
        shape, colour, pattern: of the one object, from `SHAPES`, `COLOURS` and `PATTERNS`.
        background: another of `COLOURS`.
        position: `left`, `centre` or `right`.
        size: the object's width in pixels, 66 to 82.
        shift: extra pixels (x, y) off the position.
        tint: added to each channel of the two colours, -8 to 8.
    """

    shape: str
    colour: str
    pattern: str
    background: str
    position: str = "centre"
    size: int = 74
    shift: tuple[int, int] = (0, 0)
    tint: tuple[int, int] = (0, 0)


def random_scene(rng: random.Random, **fixed: str) -> Scene:
    """A scene drawn evenly from the world, centred half of the time; keywords fix a field."""
    colour = fixed.get("colour") or rng.choice([c for c in COLOURS if c != fixed.get("background")])
    scene = Scene(
        shape=rng.choice(SHAPES),
        colour=colour,
        pattern=rng.choice(PATTERNS),
        background=rng.choice([name for name in COLOURS if name != colour]),
        position=rng.choice(("left", "centre", "centre", "right")),
        size=rng.randint(66, 82),
        shift=(rng.randint(-3, 3), rng.randint(-8, 8)),
        tint=(rng.randint(-8, 8), rng.randint(-8, 8)),
    )
    return replace(scene, **fixed)  # type: ignore[arg-type]


def ink(rgb: np.ndarray, colour: str) -> np.ndarray:
    """The pattern's second tone: a dark shade of light colours, a light tint of dark ones."""
    goal, share = (0.0, 0.6) if colour in _LIGHT else (255.0, 0.7)
    return rgb * (1 - share) + goal * share


def draw(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB picture of 128 by 128 pixels."""
    alpha, tone = (layer.resize((scene.size, scene.size), Image.Resampling.BOX) for layer in template(scene.shape, scene.pattern))
    cover = np.asarray(alpha, np.float32)[..., None] / 255
    marked = np.asarray(tone, np.float32)[..., None] / 255
    body = np.clip(np.array(COLOURS[scene.colour], np.float32) + scene.tint[0], 0, 255)
    ground = np.clip(np.array(COLOURS[scene.background], np.float32) + scene.tint[1], 0, 255)
    picture = np.broadcast_to(ground, (SIZE, SIZE, 3)).copy()  # H W 3
    left = SIZE // 2 + POSITIONS[scene.position] + scene.shift[0] - scene.size // 2
    top = SIZE // 2 + scene.shift[1] - scene.size // 2
    part = picture[top : top + scene.size, left : left + scene.size]
    painted = body * (1 - marked) + ink(body, scene.colour) * marked
    part[:] = part * (1 - cover) + painted * cover
    return Image.fromarray(picture.round().astype(np.uint8))


@cache
def template(shape: str, pattern: str) -> tuple[Image.Image, Image.Image]:
    """The object as two 256 by 256 grey pictures: its coverage, and the places of its second tone."""
    alpha = Image.new("L", (_CANVAS, _CANVAS), 0)
    _SHAPE_PAINTERS[shape](ImageDraw.Draw(alpha))
    tone = Image.new("L", (_CANVAS, _CANVAS), 0)
    _paint_pattern(ImageDraw.Draw(tone), pattern)
    return alpha, tone


def _paint_pattern(pen: ImageDraw.ImageDraw, pattern: str) -> None:
    band = _CANVAS / 7
    if pattern == "striped":
        for row in range(1, 7, 2):
            pen.rectangle((0, row * band, _CANVAS, (row + 1) * band - 1), fill=255)
    elif pattern == "checkered":
        wide = _CANVAS / 4
        for row in range(4):
            for column in range(row % 2, 4, 2):
                pen.rectangle((column * wide, row * wide, (column + 1) * wide - 1, (row + 1) * wide - 1), fill=255)
    elif pattern == "dotted":
        step, radius = _CANVAS / 3.2, _CANVAS / 10.5
        for row in range(4):
            for column in range(5):
                x, y = (column + 0.5 * (row % 2)) * step, (row + 0.5) * step * 0.9
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _polygon(pen: ImageDraw.ImageDraw, points: list[tuple[float, float]]) -> None:
    """Fill a polygon whose points run from -1 to 1 over the template."""
    middle = _CANVAS / 2
    pen.polygon([(middle + x * middle, middle + y * middle) for x, y in points], fill=255)


def _circle(pen: ImageDraw.ImageDraw) -> None:
    pen.ellipse((0, 0, _CANVAS - 1, _CANVAS - 1), fill=255)


def _square(pen: ImageDraw.ImageDraw) -> None:
    _polygon(pen, [(-0.92, -0.92), (0.92, -0.92), (0.92, 0.92), (-0.92, 0.92)])


def _triangle(pen: ImageDraw.ImageDraw) -> None:
    _polygon(pen, [(0, -1), (1, 0.9), (-1, 0.9)])


def _star(pen: ImageDraw.ImageDraw) -> None:
    radii = [1.05, 0.45] * 5
    angles = [np.pi * (index / 5 - 0.5) for index in range(10)]
    _polygon(pen, [(r * np.cos(a), r * np.sin(a) + 0.06) for r, a in zip(radii, angles)])


def _heart(pen: ImageDraw.ImageDraw) -> None:
    t = np.linspace(0, 2 * np.pi, 120)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
    _polygon(pen, list(zip(x.tolist(), (y - 0.1).tolist())))


def _cross(pen: ImageDraw.ImageDraw) -> None:
    a, b = 0.36, 1.0
    _polygon(pen, [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)])


def _moon(pen: ImageDraw.ImageDraw) -> None:
    _circle(pen)
    pen.ellipse((_CANVAS * 0.38, -_CANVAS * 0.08, _CANVAS * 1.3, _CANVAS * 0.84), fill=0)


def _diamond(pen: ImageDraw.ImageDraw) -> None:
    _polygon(pen, [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)])


_SHAPE_PAINTERS = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "moon": _moon,
    "diamond": _diamond,
}


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """A caption of `scene`. Without `rng` it is the standard wording; with `rng` it is a random wording, which may omit some facts."""
    if rng is None:
        return f"a picture of {_article(_object(scene, scene.shape))}{_place(scene)}, {scene.background} background"
    noun = rng.choice(GENERIC_NOUNS) if rng.random() < 0.05 else scene.shape
    thing = _object(scene, noun, colour=rng.random() > 0.08, swap=rng.random() < 0.2, say_plain=rng.random() < 0.25)
    subject = rng.choice(OPENINGS).format(_article(thing) if rng.random() < 0.8 else thing)
    place = _place(scene)
    if rng.random() > 0.93:
        return subject + place
    if rng.random() < 0.15:
        setting = f"on the {scene.position}, {scene.background} background" if place else f"{scene.background} background"
        return f"{setting}, {subject}"
    return subject + ("," if place and rng.random() < 0.3 else "") + place + _ground(scene, rng)


def _object(scene: Scene, noun: str, *, colour: bool = True, swap: bool = False, say_plain: bool = False) -> str:
    words = [scene.colour] if colour else []
    if scene.pattern != "plain" or say_plain:
        words.insert(0 if swap else len(words), scene.pattern)
    return " ".join([*words, noun])


def _article(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _place(scene: Scene) -> str:
    return "" if scene.position == "centre" else f" on the {scene.position}"


def _ground(scene: Scene, rng: random.Random) -> str:
    colour = scene.background
    wordings = (
        f", {colour} background",
        f" on a {colour} background",
        f" with a {colour} background",
        f" in front of a {colour} background",
    )
    return rng.choice(wordings)
