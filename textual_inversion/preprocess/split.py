"""Splitting pictures that are much longer than the wanted shape into several. Knows nothing of pixels."""

from __future__ import annotations

import math

from textual_inversion.pictures.geometry import Box, Size, crop_box


def split_boxes(size: Size, aspect: float, threshold: float, overlap: float) -> list[Box]:
    """Boxes of the wanted aspect that cover a picture of `size` evenly, in reading order; none where it is not long enough.

    Args:
        size: width and height of the picture.
        aspect: wanted width / height.
        threshold: the picture is split when (shorter aspect) / (longer aspect) is at most this and below 1.
        overlap: least overlap of neighbours as a part of their length.
    """
    ratio = size[0] / size[1] / aspect
    along = max(ratio, 1 / ratio)  # length of the picture in lengths of one part
    if along <= 1 or 1 / along > threshold:
        return []
    # Rounding must not add a part for nothing.
    count = max(2, math.ceil((along - overlap) / (1 - overlap) - 1e-9))
    return [crop_box(size, aspect, index / (count - 1)) for index in range(count)]
