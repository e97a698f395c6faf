"""What training sees of one picture: crops at its training size, and what counts in them. Knows nothing of latents or prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.colours import on_colour
from textual_inversion.pictures.reading import mask_file, read_colours, read_image, to_tensor
from textual_inversion.training.data.sizes import CENTRE, DOWNSCALE, Place, Size

_LARGE = 50_000_000  # pixels from which a JPEG is read at a fraction of its size; below, reading it whole keeps old results


@dataclass(frozen=True)
class View:
    """One crop of a picture.

    Attributes:
        pixels: uint8 [3, height, width], 0 to 255, on the CPU.
        weight: what each latent place counts, fp32 [1, height / 8, width / 8] from 0 with mean 1; None where all count alike.
    """

    pixels: torch.Tensor
    weight: torch.Tensor | None = None


@dataclass(frozen=True)
class Look:
    """How pictures are looked at.

    Attributes:
        background: colour under what is transparent.
        weighted: take the weight from `NAME-mask.png` beside the picture, or else from its transparency.
        whole: cut to the size without resizing.
    """

    background: str = "white"
    weighted: bool = False
    whole: bool = False


def load_views(path: Path, original: Size, size: Size, places: tuple[Place, ...], look: Look) -> list[View]:
    """The crops of the picture at `path` that lie at `places`; one whose weight would be zero everywhere is left out.

    Raises:
        DatasetError: it cannot be read, or nothing of it counts.
    """
    # A JPEG of that size is decoded at a fraction that still covers the crop.
    least = size if original[0] * original[1] > _LARGE and not look.whole else None
    colours = read_colours(path, least)
    mask = _mask(path, colours) if look.weighted else None
    rgb = on_colour(colours, look.background)
    views = []
    for place in places:
        weight = None if mask is None else loss_weight(mask, size, place, whole=look.whole)
        if mask is None or weight is not None:
            views.append(View(to_tensor(cut(rgb, size, place, whole=look.whole)), weight))
    if not views:
        raise DatasetError(
            f"Nothing of {path.name} would be learned: its mask is black, or it is transparent, wherever it is looked at; "
            "paint white (or opaque) what counts, or turn the loss weight off."
        )
    return views


def cut(
    image: Image.Image, size: Size, place: Place = CENTRE, *, whole: bool = False, method: int = Image.Resampling.LANCZOS
) -> Image.Image:
    """The crop of `size` at `place`: of the picture resized to cover that size or, if `whole`, as it is, at its centre."""
    if not whole:
        return ImageOps.fit(image, size, method=Image.Resampling(method), centering=place)
    left, top = ((given - kept) // 2 for given, kept in zip(image.size, size))
    return image.crop((left, top, left + size[0], top + size[1]))


def loss_weight(mask: Image.Image, size: Size, place: Place = CENTRE, *, whole: bool = False) -> torch.Tensor | None:
    """What each latent place of a crop counts, from a greyscale mask (mode L, any size of the picture's aspect).

    The lowest value counts nothing, the mean is 1, so that the loss stays comparable; a mask of one grey makes all count alike.

    Returns:
        fp32 [1, height / 8, width / 8]; None where the mask is black all over.
    """
    small = size[0] // DOWNSCALE, size[1] // DOWNSCALE
    if whole:
        values = cut(mask, size, whole=True).resize(small, Image.Resampling.BOX)
    else:
        values = cut(mask, small, place, method=Image.Resampling.BOX)
    weight = torch.from_numpy(np.array(values, dtype=np.float32))[None]  # 1 h w
    if not bool(weight.any()):
        return None
    weight = weight - weight.min()
    return weight / weight.mean() if bool(weight.any()) else torch.ones_like(weight)


def _mask(path: Path, colours: Image.Image) -> Image.Image | None:
    """The greyscale that says what counts, as large as the picture; None where there is none."""
    if (file := mask_file(path)).is_file():
        mask = read_image(file).convert("L")
        return mask if mask.size == colours.size else mask.resize(colours.size, Image.Resampling.BILINEAR)
    return colours.getchannel("A") if colours.mode == "RGBA" else None
