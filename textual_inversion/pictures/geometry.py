"""Plain cropping and resizing: which part of a picture becomes which size. Knows nothing of what the picture shows."""

from __future__ import annotations

from PIL import Image

#: (left, top, right, bottom) in pixels of the upright source, fractions allowed, so that nothing is stretched.
Box = tuple[float, float, float, float]
Size = tuple[int, int]
#: A size that may be a part of a picture.
Extent = tuple[float, float]

_MULTIPLE = 8  # pixels in one latent


def crop_box(size: Extent, aspect: float, position: float = 0.5) -> Box:
    """The largest box of that aspect (width / height) in a picture of `size`, placed along the side where there is room.

    Args:
        position: 0 is left or top, 1 right or bottom.
    """
    width, height = size
    wide = min(float(width), height * aspect)
    high = min(float(height), width / aspect)
    left, top = (width - wide) * position, (height - high) * position
    return left, top, left + wide, top + high


def fit_size(size: Extent, width: int, height: int) -> Size:
    """The size inside `width` x `height` that keeps the aspect of `size`, sides rounded to multiples of 8, never below 8."""
    scale = min(width / size[0], height / size[1])
    return _side(size[0] * scale, width), _side(size[1] * scale, height)


def cut(image: Image.Image, box: Box, size: Size) -> Image.Image:
    """The part of an RGB or RGBA picture inside `box` (in its own pixels), resized to `size` by Lanczos.

    Colours are resized apart from alpha: the colours under a loss weight of nothing stay what they are.
    """
    if image.mode == "RGBA":
        alpha = cut(image.getchannel("A"), box, size)
        colours = cut(image.convert("RGB"), box, size)
        colours.putalpha(alpha)
        return colours
    whole = (0, 0, *image.size)
    if size == image.size and box == whole:
        return image
    # Halving first, down to twice the size, is a third of the work and cannot be told from a single pass.
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=2.0)


def scaled(box: Box, size: Size, image_size: Size) -> Box:
    """`box` on a picture of `size`, on its reduced copy of `image_size`; never outside that."""
    x, y = image_size[0] / size[0], image_size[1] / size[1]
    left, top, right, bottom = box
    return left * x, top * y, min(right * x, image_size[0]), min(bottom * y, image_size[1])


def _side(length: float, most: int) -> int:
    return min(most, max(_MULTIPLE, round(length / _MULTIPLE) * _MULTIPLE))
