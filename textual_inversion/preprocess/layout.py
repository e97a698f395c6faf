"""Which parts of a picture become which results, by its size and the settings alone. Knows nothing of pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.geometry import Box, Extent, Size, crop_box, fit_size
from textual_inversion.preprocess.autosize import SizeBounds, auto_size
from textual_inversion.preprocess.split import split_boxes
from textual_inversion.settings.preprocessing import PreprocessConfig

_DESCRIBED = 768  # pixels: no captioner looks at more


@dataclass(frozen=True)
class View:
    """A part of a source picture that becomes a result.

    Attributes:
        part: its place among the parts of a split picture, from 0.
        box: (left, top, right, bottom) in pixels of the upright source.
        size: (width, height) of the result in pixels.
        caption: what is written for it; None = nothing.
        edited: the caption was written by a person, and replaces one that is there already.
        chosen: it is wanted.
    """

    part: int
    box: Box
    size: Size
    caption: str | None = None
    edited: bool = False
    chosen: bool = True


def lay_out(size: Size, config: PreprocessConfig, name: str) -> list[View]:
    """Views of a picture of `size`, in order, crops at the centre.

    Raises:
        DatasetError: no size of `auto_size` fits its shape; the sentence begins with `name`.
    """
    wanted = config.width / config.height
    if config.captions_only:
        return [View(0, (0, 0, *size), fit_size(size, min(_DESCRIBED, size[0]), min(_DESCRIBED, size[1])))]
    if config.split:
        boxes = split_boxes(size, wanted, config.split_threshold, config.split_overlap)
        if boxes:
            return [_sized(View(part, box, (config.width, config.height)), config, name) for part, box in enumerate(boxes)]
    return [_sized(View(0, (0, 0, *size), size), config, name)]


def can_move(views: list[View], size: Size) -> bool:
    """Whether the only view of a picture has room in it, so that a focal point can tell where it should be."""
    if len(views) != 1:
        return False
    left, top, right, bottom = views[0].box
    return size[0] - (right - left) >= 1 or size[1] - (bottom - top) >= 1


def placed(view: View, size: Size, position: float) -> View:
    """The view at another place of its picture: 0 is left or top, 1 right or bottom."""
    return replace(view, box=crop_box(size, view.size[0] / view.size[1], position))


def _sized(view: View, config: PreprocessConfig, name: str) -> View:
    left, top, right, bottom = view.box
    size = (right - left, bottom - top)
    result = _result_size(size, config, name, whole=view.size)
    inner = crop_box(size, result[0] / result[1])
    return replace(view, box=(left + inner[0], top + inner[1], left + inner[2], top + inner[3]), size=result)


def _result_size(size: Extent, config: PreprocessConfig, name: str, whole: Size) -> Size:
    if config.auto_size:
        bounds = SizeBounds(config.min_side, config.max_side, config.side_step, config.min_area, config.max_area)
        chosen = auto_size(size, bounds, config.objective, config.error_threshold)
        if chosen is None:
            raise DatasetError(
                f"{name} ({size[0]:.0f}x{size[1]:.0f}) fits no size within the bounds and an error of {config.error_threshold:g}; "
                "widen the bounds, raise the error threshold or split it."
            )
        return chosen
    if config.focal_crop or config.resize == "crop":
        return config.width, config.height
    if config.resize == "fit":
        return fit_size(size, config.width, config.height)
    return whole
