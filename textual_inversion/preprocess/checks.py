"""What is wrong with a picture as a training picture, each with a sentence. Knows nothing of files or settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from textual_inversion.pictures.geometry import Box, Size

#: Variance of the Laplacian at the size that is looked at, below which a picture counts as blurred.
BLURRED = 40.0
#: Bits of 128 in which the prints of two pictures may differ and still show the same.
SAME_BITS = 10
_SAME_COLOUR = 12.0  # mean difference of their colours, of 255
_ENLARGED = 1.25
_CUT_AWAY = 0.5

_BITS = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)


@dataclass(frozen=True)
class Problem:
    """Something to look at before writing: `kind` is `small`, `blurred`, `duplicate`, `shape` or `caption`, `text` one sentence."""

    kind: str
    text: str


@dataclass(frozen=True)
class Print:
    """By what a picture is known again: 128 bits of its brightness' ups and downs (uint8 [16]), and its colours (uint8 [48])."""

    bits: np.ndarray
    colours: np.ndarray


def check_size(boxes: Sequence[Box], sizes: Sequence[Size]) -> Problem | None:
    """Whether a result would be larger than what it is made of."""
    times = max((size[0] / (box[2] - box[0]) for box, size in zip(boxes, sizes)), default=0.0)
    if times <= _ENLARGED:
        return None
    return Problem(
        "small", f"It is too small: enlarged {times:.1f} times, which teaches blur; find a larger copy or choose a smaller size."
    )


def check_shape(size: Size, boxes: Sequence[Box]) -> Problem | None:
    """Whether more than half of the picture is cut away; boxes of a split picture count together."""
    kept = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) / (size[0] * size[1])
    if not boxes or kept >= _CUT_AWAY:
        return None
    return Problem("shape", f"{1 - kept:.0%} of it is cut away; split it, let each picture's size follow its shape, or fit it whole.")


def check_sharpness(grey: np.ndarray) -> Problem | None:
    """Whether a grey picture, uint8 [height, width] of some 0.35 million pixels or fewer, looks blurred."""
    values = grey.astype(np.float32)
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    sharpness = float((around - 4 * values[1:-1, 1:-1]).var()) if min(grey.shape) > 2 else 0.0
    if sharpness >= BLURRED:
        return None
    return Problem(
        "blurred", f"It looks blurred or empty (sharpness {sharpness:.0f}, usual is above {BLURRED:.0f}); leave it out if it is."
    )


def print_of(image: Image.Image) -> Print:
    """What an RGB picture is known by; the same picture resized, recompressed or a little brighter has nearly the same."""
    grey = image.convert("L")
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), dtype=np.int16)
    bits = np.concatenate([(across[:, 1:] > across[:, :-1]).ravel(), (down[1:] > down[:-1]).ravel()])
    colours = np.asarray(image.resize((4, 4), Image.Resampling.BOX), dtype=np.uint8).ravel()
    return Print(np.packbits(bits), colours)


def find_duplicates(prints: Sequence[Print | None]) -> list[int | None]:
    """For each picture, the place of the first one before it that shows the same; None where there is none (or no print)."""
    places = [place for place, held in enumerate(prints) if held is not None]
    found: list[int | None] = [None] * len(prints)
    if not places:
        return found
    bits = np.stack([held.bits for held in prints if held is not None])
    colours = np.stack([held.colours for held in prints if held is not None]).astype(np.int16)
    for row in range(1, len(places)):
        # 16 bytes at a time through a table: numpy counts bits by itself only from version 2 on.
        apart = _BITS[bits[:row] ^ bits[row]].sum(axis=1, dtype=np.uint16)
        for near in np.nonzero(apart <= SAME_BITS)[0]:
            if np.abs(colours[near] - colours[row]).mean() <= _SAME_COLOUR:
                found[places[row]] = places[int(near)]
                break
    return found


def duplicate_of(name: str) -> Problem:
    """What is said of a picture that shows the same as the file `name`."""
    return Problem("duplicate", f"It shows the same as {name}; leave one of them out, or that picture counts twice.")
