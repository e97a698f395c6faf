"""Draws the visible part of an embedding picture: a background, the name and the facts about the embedding.

The texts use the available fonts. Since 10.1 Pillow includes a font with basic Latin letters. Older versions have only a tiny bitmap
font, which is enlarged here. For other scripts this module tries the fonts of the machine.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy
from PIL import Image, ImageDraw, ImageFont, ImageOps

from textual_inversion.embedding import Embedding
from textual_inversion.formats.layout import as_step, as_text

_SIDE = 512
_MIN_SIDE, _MAX_SIDE = 384, 1024
_MARGIN = 28  # pixels for a side of 512, like all sizes here
_NAME_SIZES = (60, 52, 44, 38, 32)
_NAME_LINES = 3
_FACTS_SIZE, _CHECKPOINT_SIZE = 25, 21
_WHITE, _PALE, _DIM = (255, 255, 255), (226, 230, 240), (176, 184, 200)
_CUT = "..."  # some fonts lack the ellipsis character
#: File names of common system fonts. The first font that has all letters of a line draws it.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "segoeui.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "AppleSDGothicNeo.ttc",
)
_NO_LETTER = "\uffff"
_DOTS_HEIGHT = 11


def draw_face(embedding: Embedding, picture: Image.Image | None = None) -> Image.Image:
    """The card, mode RGB, 384 to 1024 pixels a side: `picture`, or a pattern from the vectors, with the texts over it."""
    card = _pattern(embedding) if picture is None else _fit(picture)
    unit = min(card.size) / _SIDE
    lines = _lines(embedding, unit, card.width)
    height = sum(mask.height + gap for mask, _, gap in lines)
    top = max(0, card.height - height - round(_MARGIN * unit))
    card = _darken(card, top)
    for mask, colour, gap in lines:
        card.paste(colour, (round(_MARGIN * unit), top), mask)
        top += mask.height + gap
    return card


def _lines(embedding: Embedding, unit: float, width: int) -> list[tuple[Image.Image, tuple[int, int, int], int]]:
    """Mask, colour and the gap below of each line; no line is wider than the card allows."""
    room = width - 2 * round(_MARGIN * unit)
    size, names = _break_name(as_text(embedding.name) or "embedding", unit, room)
    lines = [(draw_line(name, size), _WHITE, 0) for name in names]
    lines[-1] = (*lines[-1][:2], round(8 * unit))
    facts = [embedding.description.family, embedding.description.vectors]
    if (step := as_step(embedding.provenance.step)) is not None:
        facts.append(f"{step:,} step{'s' * (step != 1)}")
    checkpoint = as_text(embedding.provenance.checkpoint_name) or ""
    for text, points, colour in ((" · ".join(facts), _FACTS_SIZE, _PALE), (checkpoint, _CHECKPOINT_SIZE, _DIM)):
        if text.strip():
            size = round(points * unit)
            lines.append((draw_line(_shorten(text, size, room), size), colour, round(4 * unit)))
    return lines


def _break_name(name: str, unit: float, room: int) -> tuple[int, list[str]]:
    """The name's size and lines: large in one line, else smaller, else in up to three lines, else cut."""
    for points in _NAME_SIZES:
        if line_width(name, size := round(points * unit)) <= room:
            return size, [name]
    lines: list[str] = []
    while name and len(lines) < _NAME_LINES:
        length = _count_fitting(name, size, room)
        if length < len(name):  # break after ` -._` in the second half of the text that fits, else at its end
            place = max(name.rfind(sign, 0, length) + 1 for sign in " -._")
            length = place if place > length // 2 else length
        lines.append(name[:length].strip() or "_")
        name = name[length:]
    if name:
        lines[-1] = _shorten(lines[-1] + name, size, room)
    return size, lines


def _shorten(text: str, size: int, room: int) -> str:
    length = _count_fitting(text, size, room)
    return text if length == len(text) else text[: _count_fitting(text, size, room, _CUT)].rstrip() + _CUT


def _count_fitting(text: str, size: int, room: int, suffix: str = "") -> int:
    """How many letters of `text`, at least one, fit into `room` with `suffix` after them."""
    low, high = 1, min(len(text), 4 * room // size + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if line_width(text[:middle] + suffix, size) <= room else (low, middle - 1)
    return low


def _darken(card: Image.Image, top: int) -> Image.Image:
    """Darken the card gradually from above `top` to its lower edge, so that white letters are legible on any picture."""
    rows = numpy.arange(card.height)
    begin = max(0, top - card.height // 3)
    ramp = numpy.clip((rows - begin) / max(1, top - begin), 0, 1)
    keep = 1 - 0.78 * ramp * ramp * (3 - 2 * ramp)
    pixels = numpy.asarray(card, dtype=numpy.float64) * keep[:, None, None]
    return Image.fromarray(pixels.round().astype(numpy.uint8))


def _fit(picture: Image.Image) -> Image.Image:
    """Crop the middle of `picture` to an aspect ratio of at most 2:1, at a size with room for the texts and the data."""
    width, height = picture.size
    width, height = min(width, 2 * height), min(height, 2 * width)
    factor = min(max(1.0, _MIN_SIDE / min(width, height)), _MAX_SIDE / max(width, height))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if "A" in picture.getbands() or "transparency" in picture.info:
        ground = Image.new("RGBA", picture.size, (24, 26, 32, 255))
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    return ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS)


def _pattern(embedding: Embedding) -> Image.Image:
    """Soft waves of colour; equal vectors give equal patterns."""
    digest = hashlib.sha256()
    for encoder in sorted(embedding.vectors):
        digest.update(embedding.vectors[encoder].contiguous().numpy().astype("<f4").tobytes())
    chance = iter(value / 255 for value in digest.digest())
    y, x = numpy.mgrid[0:_SIDE, 0:_SIDE] / _SIDE  # h w
    field = numpy.zeros_like(x)
    for _ in range(4):
        angle, pace, phase = next(chance) * 2 * numpy.pi, 2 + 4 * next(chance), next(chance) * 2 * numpy.pi
        field = field + numpy.sin(pace * (x * numpy.cos(angle) + y * numpy.sin(angle)) + phase + 0.9 * field)
    hue, turn = next(chance), 0.05 + 0.05 * next(chance)
    shift = numpy.array([0.0, 0.33, 0.67])
    waves = numpy.cos(2 * numpy.pi * (hue + shift + turn * field[..., None]))  # h w 3
    light = 0.52 + 0.1 * numpy.sin(field * 2 + 1)[..., None]
    return Image.fromarray((255 * numpy.clip(light + 0.3 * waves, 0, 1)).round().astype(numpy.uint8))


def draw_line(text: str, size: int) -> Image.Image:
    """`text` in letters of about `size` pixels, mode `L`, 255 where the letters are; trimmed at the sides only."""
    font = _font_for(text, size)
    if font is None:
        return _draw_dots(text, size)
    left, _, right, _ = font.getbbox(text)
    ascent, descent = font.getmetrics()
    mask = Image.new("L", (max(1, int(right - left)), ascent + descent))
    ImageDraw.Draw(mask).text((-left, 0), text, font=font, fill=255)
    return mask


def line_width(text: str, size: int) -> int:
    """Width in pixels of the result of `draw_line`."""
    font = _font_for(text, size)
    if font is None:
        return _draw_dots(text, size).width
    left, _, right, _ = font.getbbox(text)
    return max(1, int(right - left))


def _draw_dots(text: str, size: int) -> Image.Image:
    """Draw with the tiny bitmap font, enlarged; it has only Latin-1."""
    text = text.encode("latin-1", "replace").decode("latin-1") or "?"
    font: Any = ImageFont.load_default()
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (max(1, int(right - left)), max(1, int(bottom - top))))
    ImageDraw.Draw(mask).text((-left, -top), text, font=font, fill=255)
    factor = size / _DOTS_HEIGHT
    return mask.resize((max(1, round(mask.width * factor)), max(1, round(mask.height * factor))), Image.Resampling.LANCZOS)


def _font_for(text: str, size: int) -> Any:
    """The first font that has all letters, else the font that has most of them; None when there is no scalable font."""
    best, fewest = None, len(text) + 1
    for name in (None, *_SYSTEM_FONTS):
        font = _open_font(name, size)
        if font is None:
            continue
        missing = sum(not _knows(font, letter) for letter in dict.fromkeys(text) if not letter.isspace())
        if missing < fewest:
            best, fewest = font, missing
        if not missing:
            break
    return best


@lru_cache(maxsize=64)
def _open_font(name: str | None, size: int) -> Any:
    """Open the font called `name`, or Pillow's own for None. Return None when there is no such font."""
    try:
        return ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)
    except (OSError, TypeError, ImportError):  # TypeError: before Pillow 10.1; ImportError: built without FreeType
        return None


@lru_cache(maxsize=4096)
def _knows(font: Any, letter: str) -> bool:
    return bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))
