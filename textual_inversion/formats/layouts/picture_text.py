"""Lines of text as masks for a picture, with whatever font there is. Knows nothing of embeddings.

Pillow brings a font with basic Latin letters from 10.1 on, older ones a tiny one of dots that is enlarged. For other scripts the
fonts of the machine are asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

#: Fonts that systems bring, by file name; the first that knows all letters of a line draws it.
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
    """Pixels that `draw_line` makes wide."""
    font = _font_for(text, size)
    if font is None:
        return _draw_dots(text, size).width
    left, _, right, _ = font.getbbox(text)
    return max(1, int(right - left))


def _draw_dots(text: str, size: int) -> Image.Image:
    """The tiny font, which knows Latin-1 only, made larger."""
    text = text.encode("latin-1", "replace").decode("latin-1") or "?"
    font: Any = ImageFont.load_default()
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (max(1, int(right - left)), max(1, int(bottom - top))))
    ImageDraw.Draw(mask).text((-left, -top), text, font=font, fill=255)
    factor = size / _DOTS_HEIGHT
    return mask.resize((max(1, round(mask.width * factor)), max(1, round(mask.height * factor))), Image.Resampling.LANCZOS)


def _font_for(text: str, size: int) -> Any:
    """The first font that knows all letters, else the one that knows most; None where there is no scalable font."""
    best, fewest = None, len(text) + 1
    for name in (None, *_SYSTEM_FONTS):
        font = _open_font(name, size)
        if font is None:
            continue
        missing = sum(1 for letter in _letters(text) if not _knows(font, letter))
        if missing < fewest:
            best, fewest = font, missing
        if not missing:
            break
    return best


@lru_cache(maxsize=64)
def _open_font(name: str | None, size: int) -> Any:
    """Pillow's own font for None; None where there is no such font."""
    try:
        return ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)
    except (OSError, TypeError, ImportError):  # TypeError: before Pillow 10.1; ImportError: built without FreeType
        return None


def _letters(text: str) -> Iterator[str]:
    return (letter for letter in dict.fromkeys(text) if not letter.isspace())


@lru_cache(maxsize=4096)
def _knows(font: Any, letter: str) -> bool:
    return bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))
