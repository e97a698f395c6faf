"""Where a crop should be: the window with most faces, detail and corners in it. Knows nothing of files.

A window slides along the picture's longer side, and every place of it gets a mark for each of the three; the best sum wins. Corners
are those of Shi and Tomasi, "Good Features to Track" (1994), detail is the entropy of a window's grey levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from textual_inversion.pictures.geometry import Box, crop_box

_LEVELS = 32  # of grey, for the entropy
_CORNER_QUALITY = 0.04  # of the best corner
_CORNER_CELL = 0.06  # of the shorter side: at most one corner in each
_WATERMARK = 0.1  # of the height, at the bottom, where corners do not count
_CLEAR_DIFFERENCE = 0.5  # bits between the dullest and the richest window that count in full
_FACE_MARGIN = 0.3  # of a face's side, that the crop should leave around it
_CENTRE_PULL = 0.1  # photographers put what matters there


@dataclass(frozen=True)
class FocalWeights:
    """Pull of each on the crop, 0 to 1."""

    face: float = 0.9
    entropy: float = 0.15
    edges: float = 0.5


@dataclass(frozen=True)
class Focus:
    """What the focal crop saw and chose.

    Attributes:
        position: where the crop lies in its room to move: 0 is left or top, 1 right or bottom.
        faces: boxes, as parts of the picture's width and height.
        corners: points (x, y), likewise.
    """

    position: float
    faces: tuple[Box, ...] = ()
    corners: tuple[tuple[float, float], ...] = field(default=(), repr=False)


def find_focus(grey: np.ndarray, aspect: float, weights: FocalWeights, faces: Sequence[Box]) -> Focus:
    """Where the largest window of `aspect` (width / height) lies best.

    Args:
        grey: uint8 [height, width], a few hundred pixels a side.
        faces: boxes of faces in its pixels.
    """
    height, width = grey.shape
    left, top, right, bottom = crop_box((width, height), aspect)
    across = right - left < width - 1e-9  # the window moves to the right, else down
    length, window = (width, round(right - left)) if across else (height, round(bottom - top))
    corners = _corners(grey) if weights.edges else np.zeros((0, 2))
    seen = tuple((l / width, t / height, r / width, b / height) for l, t, r, b in faces)
    points = tuple((float(x) / width, float(y) / height) for x, y in corners)
    if window >= length:
        return Focus(0.5, seen, points)
    axis = 0 if across else 1
    marks = _centre_pull(length, window)
    if weights.face and faces:
        marks = marks + weights.face * _face_marks([(box[axis], box[axis + 2]) for box in faces], length, window)
    if weights.edges and len(corners):
        marks = marks + weights.edges * _corner_marks(corners[:, axis], length, window)
    if weights.entropy:
        marks = marks + weights.entropy * _entropy_marks(grey if across else grey.T, window)
    return Focus(int(marks.argmax()) / (length - window), seen, points)


def _centre_pull(length: int, window: int) -> np.ndarray:
    places = np.linspace(-1, 1, length - window + 1)
    return _CENTRE_PULL * (1 - places**2)


def _nearness(centres: np.ndarray, length: int, window: int) -> np.ndarray:
    """[points, places]: 1 where a point is in the middle of the window, down to a half at its border, and 0 outside."""
    middles = np.arange(length - window + 1) + window / 2
    away = np.abs(centres[:, None] - middles[None, :]) / (window / 2)
    return np.where(away <= 1, 1 - 0.5 * away**2, 0.0)


def _face_marks(faces: list[tuple[float, float]], length: int, window: int) -> np.ndarray:
    """How much of the faces each window holds, larger ones counting more, those near its middle more, cut ones less."""
    spans = np.array(faces)
    sides = spans[:, 1] - spans[:, 0]
    low = np.maximum(spans[:, 0] - sides * _FACE_MARGIN, 0)
    high = np.minimum(spans[:, 1] + sides * _FACE_MARGIN, length)
    starts = np.arange(length - window + 1)
    held = np.minimum(high[:, None], starts + window) - np.maximum(low[:, None], starts)
    covered = np.clip(held / (high - low)[:, None], 0, 1) ** 2
    near = _nearness((spans[:, 0] + spans[:, 1]) / 2, length, window)
    return sides @ (covered * (near + 1) / 2) / sides.sum()


def _corner_marks(places: np.ndarray, length: int, window: int) -> np.ndarray:
    return _nearness(places, length, window).mean(axis=0)


def _entropy_marks(grey: np.ndarray, window: int) -> np.ndarray:
    """How rich each window's grey levels are, 0 to 1: from running sums of the columns' histograms, so no window is counted anew."""
    levels = grey // (256 // _LEVELS)
    columns = np.stack([(levels == level).sum(axis=0) for level in range(_LEVELS)])  # levels length
    sums = np.concatenate([np.zeros((_LEVELS, 1)), columns.cumsum(axis=1)], axis=1)
    shares = (sums[:, window:] - sums[:, :-window]) / (grey.shape[0] * window)
    bits = -(shares * np.log2(np.maximum(shares, 1e-12))).sum(axis=0)
    spread = bits.max() - bits.min()
    return (bits - bits.min()) / max(spread, _CLEAR_DIFFERENCE)


def _corners(grey: np.ndarray) -> np.ndarray:
    """Points (x, y) [points, 2]: in each cell of a grid, the place that most resembles a corner, if it does well enough."""
    strength = _corner_strength(grey.astype(np.float32))
    strength[round(len(strength) * (1 - _WATERMARK)) :] = 0
    cell = max(4, round(min(grey.shape) * _CORNER_CELL))
    rows, columns = (side // cell for side in strength.shape)
    if not rows or not columns:
        return np.zeros((0, 2))
    blocks = strength[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell).swapaxes(1, 2).reshape(rows, columns, -1)
    best = blocks.max(axis=2)
    at_row, at_column = np.nonzero(best > max(_CORNER_QUALITY * best.max(), 1.0))
    inside = blocks.argmax(axis=2)[at_row, at_column]
    return np.stack([at_column * cell + inside % cell, at_row * cell + inside // cell], axis=1)


def _corner_strength(grey: np.ndarray) -> np.ndarray:
    """The smaller eigenvalue of each place's structure tensor, [height, width]."""
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    down[1:-1] = (grey[2:] - grey[:-2]) / 2
    right[:, 1:-1] = (grey[:, 2:] - grey[:, :-2]) / 2
    xx, yy, xy = _blur(right * right), _blur(down * down), _blur(right * down)
    return (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy**2)


def _blur(values: np.ndarray) -> np.ndarray:
    """Means of 3 x 3 places; the outermost stay nothing."""
    blurred = np.zeros_like(values)
    rows = values[:-2] + values[1:-1] + values[2:]
    blurred[1:-1, 1:-1] = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9
    return blurred


def debug_picture(image: Image.Image, focus: Focus, boxes: Sequence[Box]) -> Image.Image:
    """A copy of an RGB picture with faces in red, corners in blue and crops in green; `boxes` are in its pixels."""
    shown = image.convert("RGB")
    draw = ImageDraw.Draw(shown)
    width, height = shown.size
    for x, y in focus.corners:
        draw.ellipse((x * width - 2, y * height - 2, x * width + 2, y * height + 2), outline="#3b82f6")
    for left, top, right, bottom in focus.faces:
        draw.rectangle((left * width, top * height, right * width, bottom * height), outline="#ef4444", width=2)
    for left, top, right, bottom in boxes:
        draw.rectangle((left, top, right - 1, bottom - 1), outline="#22c55e", width=3)
    return shown
