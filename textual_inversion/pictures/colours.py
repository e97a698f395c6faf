"""Turns decoded pictures of any mode and size into 8-bit colours, and lays transparent ones on a colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

_BAND_PIXELS = 8_000_000  # converted at a time, so that a large picture is in memory twice at most and not four times


def eight_bit_colours(image: Image.Image) -> Image.Image:
    """RGBA where something shows through, else RGB; greyscale of 16 and 32 bits is scaled to 8. It may be `image` itself."""
    if image.mode[0] in "IF":
        scale = _scale_to_8_bits(image)
        return _by_bands(image, lambda band: Image.fromarray((_values(band) * scale).round().clip(0, 255).astype(np.uint8)).convert("RGB"))
    if not (image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info):
        return image if image.mode == "RGB" else image.convert("RGB")
    colours = image if image.mode == "RGBA" else image.convert("RGBA")
    return colours if colours.getchannel("A").getextrema()[0] < 255 else colours.convert("RGB")


def on_colour(image: Image.Image, colour: str) -> Image.Image:
    """RGB of an RGB or RGBA picture, what shows through laid on `colour` (a name, or such as `#ffffff`)."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return _by_bands(image, lambda band: Image.alpha_composite(Image.new("RGBA", band.size, colour), band).convert("RGB"))


def flatten_alpha(image: Image.Image, transparency: str, background: str) -> Image.Image:
    """RGB with transparent parts laid on `background`; with `transparency` = `weight` the picture keeps its alpha, as a loss weight."""
    return image if transparency == "weight" else on_colour(image, background)


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert`, which gives RGB, band by band."""
    if image.width * image.height <= _BAND_PIXELS:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for top, band in _bands(image):
        whole.paste(convert(band), (0, top))
    return whole


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _scale_to_8_bits(image: Image.Image) -> float:
    """Factor that brings deep greyscale to 8 bits; Pillow would clip it at 255 instead of scaling it."""
    peak = max(float(_values(band).max()) for _, band in _bands(image))
    if image.mode == "F":
        return 255.0 if peak <= 1 else 1.0
    return 255 / 65535 if peak <= 65535 else 255 / (2**31 - 1)


def _values(image: Image.Image) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.nan_to_num(np.asarray(image).astype(np.float64))  # h w
