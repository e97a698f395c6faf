"""Finds faces by the cascades inside OpenCV's wheel, where that is installed. Knows nothing of crops."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from textual_inversion.pictures.geometry import Box

_ADVICE = "so the focal crop goes by detail and edges alone"
# Cascade -> whether its mirror image is looked for as well. The first that finds something has the word.
_CASCADES = (("frontalface_alt2", False), ("profileface", True))
_NEIGHBOURS = 6
_LEAST_SIDE = 0.1  # of the shorter side of the picture


def why_no_faces() -> str:
    """One sentence when faces cannot be looked for here, and what to do; empty when they can."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        return f"OpenCV is not installed, {_ADVICE}; `pip install opencv-python-headless==4.11.0.86` adds it."
    if not hasattr(cv2, "CascadeClassifier") or not os.path.isfile(_file(cv2, _CASCADES[0][0])):
        return f"OpenCV {cv2.__version__} has no face cascade, {_ADVICE}; version 4 has one."
    return ""


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, OpenCV uses no threads of its own: the pictures have theirs, and waiting for each other costs more than it gains."""
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
    """Looks for faces of people. One for all threads: each has its own cascades, which cannot be shared.

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
            found = self._detect(name, grey, side)
            if mirrored:
                width = grey.shape[1]
                found += [(width - r, t, width - l, b) for l, t, r, b in self._detect(name, np.ascontiguousarray(grey[:, ::-1]), side)]
            if found:
                return sorted(found, key=lambda box: box[0] - box[2])
        return []

    def _detect(self, name: str, grey: np.ndarray, side: int) -> list[Box]:
        cascade = self._cascade(name)
        found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=_NEIGHBOURS, minSize=(side, side))
        return [(float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in found]

    def _cascade(self, name: str) -> Any:
        held: dict[str, Any] = self._local.__dict__
        if name not in held:
            cv2 = importlib.import_module("cv2")
            held[name] = cv2.CascadeClassifier(_file(cv2, name))
        return held[name]


def _file(cv2: Any, name: str) -> str:
    return os.path.join(getattr(getattr(cv2, "data", None), "haarcascades", ""), f"haarcascade_{name}.xml")
