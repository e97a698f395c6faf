"""Mirrored copies of a picture. Knows nothing of files."""

from __future__ import annotations

from PIL import Image

#: Way of mirroring -> its place in a result's number; 0 is the picture itself.
PLACES = {"": 0, "horizontal": 1, "vertical": 2, "both": 3}

_MOVES = {
    "horizontal": Image.Transpose.FLIP_LEFT_RIGHT,
    "vertical": Image.Transpose.FLIP_TOP_BOTTOM,
    "both": Image.Transpose.ROTATE_180,
}


def flipped(image: Image.Image, way: str) -> Image.Image:
    """The picture mirrored: `horizontal` exchanges left and right, `vertical` top and bottom, `both` both; empty = as it is."""
    return image.transpose(_MOVES[way]) if way else image
