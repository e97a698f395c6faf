"""Which parts of a picture become which results: split, sized by its shape, cropped, mirrored. Sizes alone decide, no pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from PIL import Image

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.geometry import Box, Extent, Size, View, crop_box, fit_size
from textual_inversion.settings.preprocessing import PreprocessConfig

#: Way of mirroring -> its place in a result's number; 0 is the picture itself.
FLIPS = {"": 0, "horizontal": 1, "vertical": 2, "both": 3}

_TRANSPOSES = {
    "horizontal": Image.Transpose.FLIP_LEFT_RIGHT,
    "vertical": Image.Transpose.FLIP_TOP_BOTTOM,
    "both": Image.Transpose.ROTATE_180,
}
_DESCRIBED = 768  # pixels of the longer side: no captioner uses more


@dataclass(frozen=True)
class PlannedView(View):
    """A part of a source picture that becomes a result.

    Attributes:
        part: its index among the parts of a split picture.
        caption: written for it; None = nothing.
        edited: the caption was written by a person, and replaces one that is there already.
        chosen: it is wanted.
    """

    part: int = 0
    caption: str | None = None
    edited: bool = False
    chosen: bool = True


def lay_out(size: Size, config: PreprocessConfig, name: str) -> list[PlannedView]:
    """Views of a picture of `size`, in order, crops at the centre.

    Raises:
        DatasetError: no size of `auto_size` fits its shape; the sentence begins with `name`.
    """
    whole: Box = (0, 0, *size)
    if config.captions_only:
        return [PlannedView(whole, fit_size(size, min(_DESCRIBED, size[0]), min(_DESCRIBED, size[1])))]
    boxes = split_boxes(size, config.width / config.height, config.split_threshold, config.split_overlap) if config.split else []
    if boxes:
        return [_view(box, part, (config.width, config.height), config, name) for part, box in enumerate(boxes)]
    return [_view(whole, 0, size, config, name)]


def can_move(views: list[PlannedView], size: Size) -> bool:
    """Whether a picture has one view and that view has room to move, so that a focal point can decide where it lies."""
    if len(views) != 1:
        return False
    left, top, right, bottom = views[0].box
    return size[0] - (right - left) >= 1 or size[1] - (bottom - top) >= 1


def moved(view: PlannedView, size: Size, position: float) -> PlannedView:
    """The view at another place of its picture: 0 is left or top, 1 right or bottom."""
    return replace(view, box=crop_box(size, view.size[0] / view.size[1], (position, position)))


def split_boxes(size: Size, aspect: float, threshold: float, overlap: float) -> list[Box]:
    """Boxes that cover a picture much longer than the wanted shape evenly, in reading order; none where it is not long enough.

    Args:
        size: width and height of the picture.
        aspect: wanted width / height, that of every box.
        threshold: the picture is split when (shorter aspect) / (longer aspect) is at most this and below 1.
        overlap: least overlap of neighbours as a part of their length.
    """
    ratio = size[0] / size[1] / aspect
    along = max(ratio, 1 / ratio)  # length of the picture in lengths of one part
    if along <= 1 or 1 / along > threshold:
        return []
    # Rounding must not add a part for nothing.
    count = max(2, math.ceil((along - overlap) / (1 - overlap) - 1e-9))
    return [crop_box(size, aspect, (index / (count - 1),) * 2) for index in range(count)]


def auto_size(size: Extent, config: PreprocessConfig) -> Size | None:
    """The best size within the bounds of the settings for a picture of `size`; None where none is near enough to its shape.

    The objective `area` takes the largest size within the error and of equals the nearest in shape; `error` takes the nearest in
    shape and of equals the largest.
    """
    sides = range(config.min_side, config.max_side + 1, config.side_step)
    options = [(width, height) for width in sides for height in sides if config.min_area <= width * height <= config.max_area]

    def error(option: Size) -> float:
        # The share that is cropped away, in one division: sizes on the threshold, and equals, come out as in earlier runs.
        ratio = (size[0] * option[1]) / (size[1] * option[0])
        return 1 - min(ratio, 1 / ratio)

    def merit(option: Size) -> tuple[float, float]:
        area, likeness = float(option[0] * option[1]), -error(option)
        return (area, likeness) if config.objective == "area" else (likeness, area)

    return max((option for option in options if error(option) <= config.error_threshold), key=merit, default=None)


def flipped(image: Image.Image, way: str) -> Image.Image:
    """The picture mirrored: `horizontal` exchanges left and right, `vertical` top and bottom, `both` both; empty = as it is."""
    return image.transpose(_TRANSPOSES[way]) if way else image


def _view(box: Box, part: int, own_size: Size, config: PreprocessConfig, name: str) -> PlannedView:
    """The view that is cut from `box`; `own_size` is its size where pictures keep theirs."""
    left, top, right, bottom = box
    extent = (right - left, bottom - top)
    size = _result_size(extent, own_size, config, name)
    inner = crop_box(extent, size[0] / size[1])
    return PlannedView((left + inner[0], top + inner[1], left + inner[2], top + inner[3]), size, part)


def _result_size(extent: Extent, own_size: Size, config: PreprocessConfig, name: str) -> Size:
    if config.auto_size:
        size = auto_size(extent, config)
        if size is None:
            raise DatasetError(
                f"{name} ({extent[0]:.0f}x{extent[1]:.0f}) fits no size within the bounds and an error of {config.error_threshold:g}; "
                "widen the bounds, raise the error threshold or split it.",
                setting="error_threshold",
            )
        return size
    if config.focal_crop or config.resize == "crop":
        return config.width, config.height
    if config.resize == "fit":
        return fit_size(extent, config.width, config.height)
    return own_size
