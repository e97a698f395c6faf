"""One source picture: decoded no larger than needed, looked at, cut. Knows nothing of other pictures, results or captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from textual_inversion.pictures.colours import on_colour
from textual_inversion.pictures.faces import FaceFinder
from textual_inversion.pictures.geometry import Size, cut, scaled
from textual_inversion.pictures.reading import mask_file, picture_size, read_colours, read_image
from textual_inversion.pictures.salience import FocalWeights, Focus, find_focus
from textual_inversion.preprocess.layout import View, can_move, lay_out, placed
from textual_inversion.preprocess.transparency import settle
from textual_inversion.settings.preprocessing import PreprocessConfig

_LOOKED_AT = 350_000  # pixels of the copy in which blur shows: 683 x 512
_SEARCHED = 82_000  # of the one that is searched for faces and corners: 330 x 248; faces under a tenth of that are not what a picture shows
# A JPEG that its decoder has made smaller stays at least this many times the size that is cut from it: 45 dB from a decoder that did not.
_SPARE = 1.4


@dataclass(frozen=True)
class Picture:
    """A decoded source: `size` is that of the whole upright picture, `image` may be a reduced copy of it, RGB or RGBA.

    `mask` (mode L) says what each place counts, from the file `NAME-mask.png` beside it; None when there is none.
    """

    path: Path
    size: Size
    image: Image.Image
    mask: Image.Image | None = None

    def cut(self, view: View) -> Image.Image:
        """The result of a view, not mirrored."""
        return cut(self.image, scaled(view.box, self.size, self.image.size), view.size)

    def cut_mask(self, view: View) -> Image.Image | None:
        """The part of the mask that belongs to the result of a view."""
        return cut(self.mask, scaled(view.box, self.size, self.mask.size), view.size) if self.mask else None

    def small(self) -> Image.Image:
        """An RGB copy of at most 0.35 million pixels."""
        return on_colour(_reduced(self.image, _LOOKED_AT), "white")


def measure(path: Path, config: PreprocessConfig) -> tuple[Size, list[View]]:
    """Size and centred views of a source, from its header alone.

    Raises:
        DatasetError: it cannot be read, or no size fits it.
    """
    size = picture_size(path, upright=config.exif)
    return size, lay_out(size, config, path.name)


def decode(path: Path, size: Size, views: Sequence[View], config: PreprocessConfig) -> Picture:
    """Read a source as large as its views need, and its mask if it has one.

    Raises:
        DatasetError: one of them cannot be read.
    """
    image = settle(read_colours(path, least(size, views), upright=config.exif), config.transparency, config.background)
    mask = mask_file(path)
    return Picture(path, size, image, read_image(mask).convert("L") if mask.is_file() else None)


def least(size: Size, views: Sequence[View]) -> Size:
    """The size, at most `size`, at which the picture will do for its views and for looking at it."""
    scale = max((view.size[0] / (view.box[2] - view.box[0]) * _SPARE for view in views), default=0.0)
    looked_at = _within(size, _LOOKED_AT)
    return tuple(min(side, max(math.ceil(side * scale), other)) for side, other in zip(size, looked_at))  # type: ignore[return-value]


def decoded_pixels(path: Path, size: Size, views: Sequence[View]) -> int:
    """About how many pixels `decode` will hold."""
    if path.suffix.lower() not in (".jpg", ".jpeg", ".jfif"):
        return size[0] * size[1]
    wanted = least(size, views)
    halvings = min(3, int(math.log2(max(1.0, min(size[0] / wanted[0], size[1] / wanted[1])))))
    return size[0] * size[1] >> (2 * halvings)


def focused(picture: Picture, views: list[View], config: PreprocessConfig, finder: FaceFinder) -> tuple[list[View], Focus | None]:
    """The views with the only one moved to what matters in the picture; no focus where there is nothing to move."""
    if not config.focal_crop or not can_move(views, picture.size):
        return views, None
    grey = np.asarray(on_colour(_reduced(picture.image, _SEARCHED), "white").convert("L"))
    faces = finder.find(grey) if config.face_weight else []
    weights = FocalWeights(config.face_weight, config.entropy_weight, config.edges_weight)
    focus = find_focus(grey, views[0].size[0] / views[0].size[1], weights, faces)
    return [placed(views[0], picture.size, focus.position)], focus


def _reduced(image: Image.Image, pixels: int) -> Image.Image:
    return image.resize(_within(image.size, pixels), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _within(size: Size, pixels: int) -> Size:
    scale = min(1.0, math.sqrt(pixels / (size[0] * size[1])))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
