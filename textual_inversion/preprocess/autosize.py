"""Choosing a width and a height by a picture's shape. Knows nothing of pixels."""

from __future__ import annotations

from dataclasses import dataclass

from textual_inversion.pictures.geometry import Extent, Size


@dataclass(frozen=True)
class SizeBounds:
    """What a size may be: sides from `min_side` to `max_side` in steps of `step`, area from `min_area` to `max_area`, in pixels."""

    min_side: int = 384
    max_side: int = 768
    step: int = 64
    min_area: int = 64 * 64
    max_area: int = 640 * 640

    def sizes(self) -> list[Size]:
        """All of them."""
        sides = range(self.min_side, self.max_side + 1, self.step)
        return [(width, height) for width in sides for height in sides if self.min_area <= width * height <= self.max_area]


def auto_size(size: Extent, bounds: SizeBounds, objective: str, threshold: float) -> Size | None:
    """The best size for a picture of `size`; None where none is within `threshold` of its shape.

    Args:
        objective: `area` takes the largest, of equals the nearest in shape; `error` the nearest in shape, of equals the largest.
        threshold: most of the picture that may be cut away, as a part of it.
    """

    def error(option: Size) -> float:
        ratio = (size[0] * option[1]) / (size[1] * option[0])
        return 1 - min(ratio, 1 / ratio)

    def merit(option: Size) -> tuple[float, float]:
        area, likeness = float(option[0] * option[1]), -error(option)
        return (area, likeness) if objective == "area" else (likeness, area)

    return max((option for option in bounds.sizes() if error(option) <= threshold), key=merit, default=None)
