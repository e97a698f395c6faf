"""The training size of a picture, its crops at that size, and the loss weight of each place in them.

Sizes are (width, height) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from textual_inversion.errors import ConfigError, DatasetError
from textual_inversion.pictures.geometry import CENTRE, DOWNSCALE, Box, Place, Size, crop_box, cropped_share, cut
from textual_inversion.pictures.reading import on_colour, read_colours, read_mask

FIXED, BUCKETS, OWN = "fixed", "buckets", "own"
MIN_SIDE, MAX_SIDE = 64, 2048


@dataclass(frozen=True)
class Sizing:
    """How pictures get their training size.

    Attributes:
        width, height: the training size in pixels; with buckets only their area counts.
        method: `fixed` (every picture at that size), `buckets` (the size of that area that crops a picture least) or `own` (its own
            size, cut to multiples of 8).
        step: sides of buckets are multiples of this (8 to 64).
        crops: most crops of one picture (1 to 16); they are spread evenly along the side that does not fit.

    Raises:
        ConfigError: no such method.
    """

    width: int
    height: int
    method: str = FIXED
    step: int = 64
    crops: int = 1

    def __post_init__(self) -> None:
        if self.method not in (FIXED, BUCKETS, OWN):
            raise ConfigError(f"The way of sizing is {self.method!r}; it must be {FIXED}, {BUCKETS} or {OWN}.", setting="method")

    def size_of(self, original: Size) -> Size:
        """The training size of a picture of the size `original`.

        Raises:
            DatasetError: with the method `own`, a side is below 64 or above 2048 pixels.
        """
        if self.method == OWN:
            width, height = (side // DOWNSCALE * DOWNSCALE for side in original)
            if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE:
                limits = f"pictures that keep their size may have sides of {MIN_SIDE} to {MAX_SIDE}"
                raise DatasetError(f"it is {original[0]} x {original[1]} pixels, and {limits}")
            return width, height
        if self.method == BUCKETS:
            return min(
                bucket_sizes(self.width, self.height, self.step), key=lambda size: (cropped_share(original, size), -size[0] * size[1])
            )
        return self.width, self.height

    def places(self, original: Size) -> tuple[Place, ...]:
        """The places of the crops of such a picture: the centre alone, or places spread evenly, 8 pixels apart at least."""
        size = self.size_of(original)
        if self.crops == 1 or self.method == OWN:
            return (CENTRE,)
        scale = max(size[0] / original[0], size[1] / original[1])
        excess = [side * scale - wanted for side, wanted in zip(original, size)]  # the part that does not fit, of each side
        count = min(self.crops, 1 + int(max(excess) // DOWNSCALE))
        if count < 2:
            return (CENTRE,)
        across = excess[0] >= excess[1]
        along = [place / (count - 1) for place in range(count)]
        return tuple((place, 0.5) if across else (0.5, place) for place in along)


@lru_cache(maxsize=32)
def bucket_sizes(width: int, height: int, step: int) -> tuple[Size, ...]:
    """Sizes whose area is that of `width` x `height` or a little less, sides multiples of `step`, from half to twice the square's side."""
    area = width * height
    side = area**0.5
    sides = [value for value in range(step, MAX_SIDE + 1, step) if max(MIN_SIDE, side / 2) <= value <= side * 2]
    sizes = {(long, int(area / long // step) * step) for long in sides}
    sizes = {size for size in sizes | {(b, a) for a, b in sizes} if min(size) >= max(MIN_SIDE, step) and max(size) <= MAX_SIDE}
    return tuple(sorted(sizes | {(width, height)}))


_LARGE = 50_000_000  # pixels from which a JPEG is read at a fraction of its size; below, reading it whole keeps old results


@dataclass(frozen=True)
class TrainingView:
    """One crop of a picture.

    Attributes:
        pixels: uint8 [3, height, width], 0 to 255, on the CPU.
        weight: loss weight of each latent place, fp32 [1, height / 8, width / 8] from 0 with mean 1; None where all count alike.
        sizes: what SDXL is told of the view: height and width of the picture, top and left of the view in the picture at the size
            at which it is cut, height and width of the view; the same for the mirror image.
    """

    pixels: torch.Tensor
    weight: torch.Tensor | None = None
    sizes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


@dataclass(frozen=True)
class ViewOptions:
    """How pictures become views.

    Attributes:
        background: colour under transparent parts.
        weighted: take the weight from `NAME-mask.png` beside the picture, or else from its transparency.
        whole: cut to the size without resizing.
    """

    background: str = "white"
    weighted: bool = False
    whole: bool = False


def load_views(path: Path, original: Size, size: Size, places: tuple[Place, ...], options: ViewOptions) -> list[TrainingView]:
    """The crops of the picture at `path` that lie at `places`; one whose weight would be zero everywhere is left out.

    Raises:
        DatasetError: it cannot be read, or nothing of it counts.
    """
    # A JPEG of that size is decoded at a fraction that still covers the crop.
    least = size if original[0] * original[1] > _LARGE and not options.whole else None
    colours = read_colours(path, least)
    mask = read_mask(path) if options.weighted else None
    if mask is not None and mask.size != colours.size:
        mask = mask.resize(colours.size, Image.Resampling.BILINEAR)
    if options.weighted and mask is None and colours.mode == "RGBA":
        mask = colours.getchannel("A")
    rgb = on_colour(colours, options.background)
    views = []
    for place in places:
        box = view_box(rgb.size, size, place, whole=options.whole)
        weight = None if mask is None else loss_weight(mask, box, size)
        if mask is None or weight is not None:
            views.append(TrainingView(to_tensor(cut(rgb, box, size)), weight, view_sizes(original, rgb.size, box, size)))
    if not views:
        raise DatasetError(
            f"Nothing of {path.name} would be learned: its mask is black, or it is transparent, wherever it is looked at; "
            "paint white (or opaque) what counts, or turn the loss weight off.",
            path=path,
        )
    return views


def view_box(image_size: Size, size: Size, place: Place, *, whole: bool) -> Box:
    """The box of a view: the largest of its shape at `place` or, if `whole`, one as large as the view, at the centre."""
    if not whole:
        return crop_box(image_size, size[0] / size[1], place)
    left, top = ((side - wanted) // 2 for side, wanted in zip(image_size, size))
    return left, top, left + size[0], top + size[1]


def view_sizes(original: Size, read: Size, box: Box, size: Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What SDXL is told of a view and of its mirror image (arXiv 2307.01952, section 2.2); see `TrainingView`.

    Args:
        original: size of the picture.
        read: its size as it was read, in whose pixels `box` is.
        size: of the view.
    """
    left, top, right = (round(edge * size[0] / (box[2] - box[0])) for edge in (box[0], box[1], read[0] - box[2]))
    return tuple((original[1], original[0], top, max(0, beside), size[1], size[0]) for beside in (left, right))  # type: ignore[return-value]


def loss_weight(mask: Image.Image, box: Box, size: Size) -> torch.Tensor | None:
    """Loss weight of each latent place of a view.

    Black has weight 0 and the mean weight is 1, so that losses stay comparable; a mask of one grey gives equal weights.

    Args:
        mask: greyscale (mode L), as large as the picture.
        box: of the view, in pixels of the mask.
        size: of the view.

    Returns:
        fp32 [1, height / 8, width / 8]; None where the mask is black all over.
    """
    values = cut(mask, box, (size[0] // DOWNSCALE, size[1] // DOWNSCALE), method=Image.Resampling.BOX)
    weight = torch.from_numpy(np.array(values, dtype=np.float32))[None]  # 1 h w
    if not bool(weight.any()):
        return None
    weight = weight - weight.min()
    return weight / weight.mean() if bool(weight.any()) else torch.ones_like(weight)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Pixels of an RGB picture as uint8 [3, height, width], 0 to 255, on the CPU."""
    pixels = np.array(image.convert("RGB"), dtype=np.uint8)  # h w 3
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
