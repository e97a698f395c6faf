"""One source picture: decoded no larger than needed, searched for its focal point, checked, and cut into its views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from textual_inversion.pictures.geometry import Size, View, cut, scaled
from textual_inversion.pictures.measures import sharpness
from textual_inversion.pictures.reading import flatten_alpha, on_colour, picture_size, read_colours, read_mask
from textual_inversion.pictures.salience import FaceFinder, FocalWeights, Focus, find_focus
from textual_inversion.preprocess.layout import PlannedView, can_move, lay_out, moved
from textual_inversion.settings.preprocessing import PreprocessConfig

#: Variance of the Laplacian of the small copy, below which a picture counts as blurred.
BLURRED = 40.0
_ENLARGED = 1.25
_CUT_AWAY = 0.5
_SMALL = 350_000  # pixels of the copy in which blur shows: 683 x 512
_SEARCHED = 82_000  # pixels of the copy searched for faces and corners: 330 x 248; faces under a tenth of a side are not the subject
# A JPEG decoded at reduced size stays at least this many times larger than the result: 45 dB PSNR against a full decode.
_SPARE = 1.4
# Halving first, down to twice the size, is a third of the work; the result looks the same as from a single pass.
_REDUCING_GAP = 2.0


@dataclass(frozen=True)
class Problem:
    """Something to look at before writing: `kind` is `small`, `blurred`, `duplicate`, `shape` or `caption`, `text` one sentence."""

    kind: str
    text: str


@dataclass(frozen=True)
class Picture:
    """A decoded source.

    Attributes:
        path: its file.
        size: of the whole upright picture.
        image: RGB or RGBA, perhaps a reduced copy.
        mask: how much each place counts (mode L), from the file `NAME-mask.png` beside it; None when there is none.
    """

    path: Path
    size: Size
    image: Image.Image
    mask: Image.Image | None = None

    def cut(self, view: View) -> Image.Image:
        """The result of a view, not mirrored."""
        return self._cut(self.image, view)

    def cut_mask(self, view: View) -> Image.Image | None:
        """The part of the mask that belongs to the result of a view."""
        return self._cut(self.mask, view) if self.mask else None

    def _cut(self, image: Image.Image, view: View) -> Image.Image:
        return cut(image, scaled(view.box, self.size, image.size), view.size, reducing_gap=_REDUCING_GAP)

    def small(self) -> Image.Image:
        """An RGB copy of at most 0.35 million pixels."""
        return on_colour(_reduced(self.image, _SMALL), "white")


def measure(path: Path, config: PreprocessConfig) -> tuple[Size, list[PlannedView]]:
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
    colours = read_colours(path, _least_size(size, views), upright=config.exif)
    return Picture(path, size, flatten_alpha(colours, config.transparency, config.background), read_mask(path))


def decoded_pixels(path: Path, size: Size, views: Sequence[View]) -> int:
    """About how many pixels `decode` will hold."""
    if path.suffix.lower() not in (".jpg", ".jpeg", ".jfif"):
        return size[0] * size[1]
    least = _least_size(size, views)
    halvings = min(3, int(math.log2(max(1.0, min(size[0] / least[0], size[1] / least[1])))))
    return size[0] * size[1] >> (2 * halvings)


def focus_views(
    picture: Picture, views: list[PlannedView], config: PreprocessConfig, finder: FaceFinder
) -> tuple[list[PlannedView], Focus | None]:
    """The views, a single one moved to the focal point of the picture; no focus where there is nothing to move."""
    if not config.focal_crop or not can_move(views, picture.size):
        return views, None
    grey = np.asarray(on_colour(_reduced(picture.image, _SEARCHED), "white").convert("L"))
    faces = finder.find(grey) if config.face_weight else []
    weights = FocalWeights(config.face_weight, config.entropy_weight, config.edges_weight)
    focus = find_focus(grey, views[0].size[0] / views[0].size[1], weights, faces)
    return [moved(views[0], picture.size, focus.position)], focus


def check_enlargement(views: Sequence[View]) -> Problem | None:
    """Whether a result would be larger than the part that it is made of."""
    times = max((view.enlargement for view in views), default=0.0)
    if times <= _ENLARGED:
        return None
    return Problem(
        "small", f"It is too small: enlarged {times:.1f} times, which teaches blur; find a larger copy or choose a smaller size."
    )


def check_shape(size: Size, views: Sequence[View]) -> Problem | None:
    """Whether more than half of the picture is cut away; the views of a split picture count together."""
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in (view.box for view in views)) / (size[0] * size[1])
    if not views or covered >= _CUT_AWAY:
        return None
    return Problem("shape", f"{1 - covered:.0%} of it is cut away; split it, let each picture's size follow its shape, or fit it whole.")


def check_sharpness(grey: np.ndarray) -> Problem | None:
    """Whether a grey picture, uint8 [height, width] of some 0.35 million pixels or fewer, looks blurred."""
    value = sharpness(grey)
    if value >= BLURRED:
        return None
    return Problem("blurred", f"It looks blurred or empty (sharpness {value:.0f}, usual is above {BLURRED:.0f}); leave it out if it is.")


def _least_size(size: Size, views: Sequence[View]) -> Size:
    """The size, at most `size`, at which the picture is large enough for its views and for the checks."""
    scale = max((view.enlargement * _SPARE for view in views), default=0.0)
    width, height = (min(side, max(math.ceil(side * scale), small)) for side, small in zip(size, _within(size, _SMALL)))
    return width, height


def _reduced(image: Image.Image, pixels: int) -> Image.Image:
    return image.resize(_within(image.size, pixels), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _within(size: Size, pixels: int) -> Size:
    scale = min(1.0, math.sqrt(pixels / (size[0] * size[1])))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
