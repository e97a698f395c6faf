"""Sizes, boxes and views of pictures, and the one cropper. Sizes are (width, height) in pixels."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

Size = tuple[int, int]
#: A size that may be a fraction of pixels, such as that of a box.
Extent = tuple[float, float]
#: (left, top, right, bottom) in pixels of the upright picture; fractions are allowed, so that nothing is stretched.
Box = tuple[float, float, float, float]
#: Where a box lies in the part of a picture that does not fit into it: (0, 0) is left and top, (1, 1) is right and bottom.
Place = tuple[float, float]

CENTRE: Place = (0.5, 0.5)
DOWNSCALE = 8  # pixels for each latent value and side


@dataclass(frozen=True)
class View:
    """A part of an upright picture, and the size in pixels that this part gets."""

    box: Box
    size: Size

    @property
    def enlargement(self) -> float:
        """How many times larger the result is than the part that it is made of."""
        return self.size[0] / (self.box[2] - self.box[0])


def crop_box(size: Extent, aspect: float, place: Place = CENTRE) -> Box:
    """The largest box of that aspect (width / height) in a picture of `size`; it has room to move along one side at most."""
    width, height = size
    wide = min(float(width), height * aspect)
    high = min(float(height), width / aspect)
    left, top = (width - wide) * place[0], (height - high) * place[1]
    return left, top, left + wide, top + high


def cropped_share(original: Extent, size: Size) -> float:
    """Share (0 to 1) of a picture that is cut away when it is resized to cover `size`."""
    aspect, wanted = original[0] / original[1], size[0] / size[1]
    return 1 - min(aspect / wanted, wanted / aspect)


def fit_size(size: Extent, width: int, height: int) -> Size:
    """The size inside `width` x `height` that keeps the aspect of `size`, sides rounded to multiples of 8, never below 8."""

    def rounded(length: float, most: int) -> int:
        return min(most, max(DOWNSCALE, round(length / DOWNSCALE) * DOWNSCALE))

    scale = min(width / size[0], height / size[1])
    return rounded(size[0] * scale, width), rounded(size[1] * scale, height)


def scaled(box: Box, size: Size, image_size: Size) -> Box:
    """`box` of a picture of `size`, in pixels of a copy of `image_size`; never outside that copy."""
    x, y = image_size[0] / size[0], image_size[1] / size[1]
    left, top, right, bottom = box
    return left * x, top * y, min(right * x, image_size[0]), min(bottom * y, image_size[1])


def cut(
    image: Image.Image,
    box: Box,
    size: Size,
    *,
    method: Image.Resampling = Image.Resampling.LANCZOS,
    reducing_gap: float | None = None,
) -> Image.Image:
    """The part of a picture inside `box` (in its own pixels), resized to `size`.

    Colours are resized apart from alpha: the colours under a loss weight of zero stay what they are.

    Args:
        reducing_gap: halve the picture down to this many times the size before it is resized: faster, and nearly the same pixels.
    """
    if image.mode == "RGBA":
        alpha = cut(image.getchannel("A"), box, size, method=method, reducing_gap=reducing_gap)
        colours = cut(image.convert("RGB"), box, size, method=method, reducing_gap=reducing_gap)
        colours.putalpha(alpha)
        return colours
    left, top = int(box[0]), int(box[1])
    if box == (left, top, left + size[0], top + size[1]):
        return image if image.size == size else image.crop((left, top, left + size[0], top + size[1]))
    return image.resize(size, method, box=box, reducing_gap=reducing_gap)


def cover(image: Image.Image, size: Size) -> Image.Image:
    """The middle of a picture, as large as fits the shape of `size`, resized to it."""
    return cut(image, crop_box(image.size, size[0] / size[1]), size)
