"""Where a crop should lie: the window with most faces, detail and corners in it.

A window slides along the picture's longer side. Every position gets a score for each of the three, and the highest weighted sum wins.
Corners are those of Shi and Tomasi, "Good Features to Track" (1994); detail is the entropy of a window's grey levels; faces are found by
the cascades inside OpenCV's wheel, where that is installed.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from textual_inversion.pictures.geometry import Box, crop_box

_LEVELS = 32  # of grey, for the entropy
_CORNER_QUALITY = 0.04  # of the best corner
_CORNER_CELL = 0.06  # of the shorter side: at most one corner in each
_WATERMARK = 0.1  # of the height, at the bottom, where corners do not count
_CLEAR_DIFFERENCE = 0.5  # bits between the plainest and the richest window, from which on detail counts in full
_FACE_MARGIN = 0.3  # of a face's side, that the crop should leave around it
_CENTRE_PULL = 0.1  # photographers tend to centre the subject
_ADVICE = "so the focal crop goes by detail and edges alone"
# Cascade -> whether its mirror image is searched for as well. The first cascade that finds a face decides.
_CASCADES = (("frontalface_alt2", False), ("profileface", True))
_NEIGHBOURS = 6
_LEAST_SIDE = 0.1  # of a face, as a part of the shorter side of the picture


@dataclass(frozen=True)
class FocalWeights:
    """Weight of each score, 0 to 1; detail is called entropy."""

    face: float
    entropy: float
    edges: float


@dataclass(frozen=True)
class Focus:
    """The place that the focal crop chose, and what it found in the picture.

    Attributes:
        position: where the crop lies in its room to move: 0 is left or top, 1 right or bottom.
        faces: boxes, as parts of the picture's width and height.
        corners: points (x, y), as parts of the picture's width and height.
    """

    position: float
    faces: tuple[Box, ...] = ()
    corners: tuple[tuple[float, float], ...] = field(default=(), repr=False)


def find_focus(grey: np.ndarray, aspect: float, weights: FocalWeights, faces: Sequence[Box]) -> Focus:
    """The best place of the largest window of `aspect` (width / height).

    Args:
        grey: uint8 [height, width], a few hundred pixels a side.
        faces: boxes of faces in its pixels.
    """
    height, width = grey.shape
    left, top, right, bottom = crop_box((width, height), aspect)
    across = right - left < width - 1e-9  # the window moves to the right, else down
    length, window = (width, round(right - left)) if across else (height, round(bottom - top))
    corners = _corners(grey) if weights.edges else np.zeros((0, 2))
    boxes = tuple((l / width, t / height, r / width, b / height) for l, t, r, b in faces)
    points = tuple((float(x) / width, float(y) / height) for x, y in corners)
    if window >= length:
        return Focus(0.5, boxes, points)
    axis = 0 if across else 1
    marks = _CENTRE_PULL * (1 - np.linspace(-1, 1, length - window + 1) ** 2)
    if weights.face and faces:
        marks = marks + weights.face * _face_marks([(box[axis], box[axis + 2]) for box in faces], length, window)
    if weights.edges and len(corners):
        marks = marks + weights.edges * _nearness(corners[:, axis], length, window).mean(axis=0)
    if weights.entropy:
        marks = marks + weights.entropy * _entropy_marks(grey if across else grey.T, window)
    return Focus(int(marks.argmax()) / (length - window), boxes, points)


def _nearness(centres: np.ndarray, length: int, window: int) -> np.ndarray:
    """[points, places]: 1 where a point is in the middle of the window, falling to a half at its border, and 0 outside."""
    middles = np.arange(length - window + 1) + window / 2
    away = np.abs(centres[:, None] - middles[None, :]) / (window / 2)
    return np.where(away <= 1, 1 - 0.5 * away**2, 0.0)


def _face_marks(faces: list[tuple[float, float]], length: int, window: int) -> np.ndarray:
    """How much of the faces each window holds. Large faces and those near its middle count more, cut faces less."""
    spans = np.array(faces)
    sides = spans[:, 1] - spans[:, 0]
    low = np.maximum(spans[:, 0] - sides * _FACE_MARGIN, 0)
    high = np.minimum(spans[:, 1] + sides * _FACE_MARGIN, length)
    starts = np.arange(length - window + 1)
    inside = np.minimum(high[:, None], starts + window) - np.maximum(low[:, None], starts)
    covered = np.clip(inside / (high - low)[:, None], 0, 1) ** 2
    near = _nearness((spans[:, 0] + spans[:, 1]) / 2, length, window)
    return sides @ (covered * (near + 1) / 2) / sides.sum()


def _entropy_marks(grey: np.ndarray, window: int) -> np.ndarray:
    """Entropy of each window's grey levels, scaled to 0 to 1.

    Running sums of the columns' histograms give every window's histogram without counting its pixels again.
    """
    levels = grey // (256 // _LEVELS)
    columns = np.stack([(levels == level).sum(axis=0) for level in range(_LEVELS)])  # levels length
    sums = np.concatenate([np.zeros((_LEVELS, 1)), columns.cumsum(axis=1)], axis=1)
    shares = (sums[:, window:] - sums[:, :-window]) / (grey.shape[0] * window)
    bits = -(shares * np.log2(np.maximum(shares, 1e-12))).sum(axis=0)
    spread = bits.max() - bits.min()
    return (bits - bits.min()) / max(spread, _CLEAR_DIFFERENCE)


def _corners(grey: np.ndarray) -> np.ndarray:
    """Points (x, y) [points, 2]: in each cell of a grid, the strongest corner, if it is strong enough."""
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
    """The smaller eigenvalue of each pixel's structure tensor, [height, width]."""
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    down[1:-1] = (grey[2:] - grey[:-2]) / 2
    right[:, 1:-1] = (grey[:, 2:] - grey[:, :-2]) / 2
    xx, yy, xy = _blur(right * right), _blur(down * down), _blur(right * down)
    return (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy**2)


def _blur(values: np.ndarray) -> np.ndarray:
    """Means of 3 x 3 pixels; those at the border stay 0."""
    blurred = np.zeros_like(values)
    rows = values[:-2] + values[1:-1] + values[2:]
    blurred[1:-1, 1:-1] = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9
    return blurred


def debug_picture(image: Image.Image, focus: Focus, boxes: Sequence[Box]) -> Image.Image:
    """A copy of an RGB picture with faces in red, corners in blue and crops in green; `boxes` are in its pixels."""
    drawing = image.convert("RGB")
    draw = ImageDraw.Draw(drawing)
    width, height = drawing.size
    for x, y in focus.corners:
        draw.ellipse((x * width - 2, y * height - 2, x * width + 2, y * height + 2), outline="#3b82f6")
    for left, top, right, bottom in focus.faces:
        draw.rectangle((left * width, top * height, right * width, bottom * height), outline="#ef4444", width=2)
    for left, top, right, bottom in boxes:
        draw.rectangle((left, top, right - 1, bottom - 1), outline="#22c55e", width=3)
    return drawing


def why_no_faces() -> str:
    """One sentence on why faces cannot be searched for here, and what to do; empty when they can."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        return f"OpenCV is not installed, {_ADVICE}; `pip install opencv-python-headless==4.11.0.86` adds it."
    if not hasattr(cv2, "CascadeClassifier") or not os.path.isfile(_cascade_file(cv2, _CASCADES[0][0])):
        return f"OpenCV {cv2.__version__} has no face cascade, {_ADVICE}; version 4 has one."
    return ""


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep OpenCV from using threads of its own: our threads already work on several pictures, and both kinds would compete."""
    if why_no_faces():
        yield
        return
    cv2 = importlib.import_module("cv2")
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class FaceFinder:
    """Finds faces of people, called from any thread: each thread gets its own cascades, which cannot be shared.

    Without OpenCV it finds none; `why_no_faces` says so.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._able = not why_no_faces()

    def find(self, grey: np.ndarray) -> list[Box]:
        """Boxes of faces in a grey picture, uint8 [height, width], largest first; 320 x 240 pixels will do."""
        if not self._able:
            return []
        side = round(min(grey.shape) * _LEAST_SIDE)
        for name, mirrored in _CASCADES:
            faces = self._detect(name, grey, side)
            if mirrored:
                width = grey.shape[1]
                faces += [(width - r, t, width - l, b) for l, t, r, b in self._detect(name, np.ascontiguousarray(grey[:, ::-1]), side)]
            if faces:
                return sorted(faces, key=lambda box: box[0] - box[2])
        return []

    def _detect(self, name: str, grey: np.ndarray, side: int) -> list[Box]:
        cascades: dict[str, Any] = self._local.__dict__
        if name not in cascades:
            cv2 = importlib.import_module("cv2")
            cascades[name] = cv2.CascadeClassifier(_cascade_file(cv2, name))
        boxes = cascades[name].detectMultiScale(grey, scaleFactor=1.1, minNeighbors=_NEIGHBOURS, minSize=(side, side))
        return [(float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in boxes]


def _cascade_file(cv2: Any, name: str) -> str:
    return os.path.join(getattr(getattr(cv2, "data", None), "haarcascades", ""), f"haarcascade_{name}.xml")
