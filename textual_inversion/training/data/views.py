"""The crops of a picture at its training size, and the loss weight of each place in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.colours import on_colour
from textual_inversion.pictures.geometry import DOWNSCALE, Box, Place, Size, crop_box, cut
from textual_inversion.pictures.reading import read_colours, read_mask

_LARGE = 50_000_000  # pixels from which a JPEG is read at a fraction of its size; below, reading it whole keeps old results


@dataclass(frozen=True)
class TrainingView:
    """One crop of a picture.

    Attributes:
        pixels: uint8 [3, height, width], 0 to 255, on the CPU.
        weight: loss weight of each latent place, fp32 [1, height / 8, width / 8] from 0 with mean 1; None where all count alike.
    """

    pixels: torch.Tensor
    weight: torch.Tensor | None = None


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
            views.append(TrainingView(to_tensor(cut(rgb, box, size)), weight))
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


def loss_weight(mask: Image.Image, box: Box, size: Size) -> torch.Tensor | None:
    """Loss weight of each latent place of a view.

    The lowest value counts nothing and the mean is 1, so that the loss stays comparable; a mask of one grey makes all count alike.

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
