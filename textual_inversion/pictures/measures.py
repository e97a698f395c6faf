"""Measures sharpness, and finds duplicates by fingerprints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

#: Bits of 128 in which the fingerprints of two pictures may differ and still show the same.
SAME_BITS = 10
_SAME_COLOUR = 12.0  # mean difference of their colours, of 255

_BITS = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)  # number of ones in a byte


def sharpness(grey: np.ndarray) -> float:
    """Variance of the Laplacian of a grey picture, uint8 [height, width]; 0 for one of fewer than 3 pixels a side."""
    if min(grey.shape) < 3:
        return 0.0
    values = grey.astype(np.float32)
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((around - 4 * values[1:-1, 1:-1]).var())


@dataclass(frozen=True)
class Fingerprint:
    """Recognises a picture that was resized, recompressed or made a little brighter.

    Attributes:
        bits: where the brightness rises, across and down: 128 bits as uint8 [16].
        colours: mean colours of 4 x 4 fields, uint8 [48].
    """

    bits: np.ndarray
    colours: np.ndarray

    @classmethod
    def of(cls, image: Image.Image) -> Fingerprint:
        """Fingerprint of an RGB picture."""
        grey = image.convert("L")
        across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
        down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), dtype=np.int16)
        bits = np.concatenate([(across[:, 1:] > across[:, :-1]).ravel(), (down[1:] > down[:-1]).ravel()])
        colours = np.asarray(image.resize((4, 4), Image.Resampling.BOX), dtype=np.uint8).ravel()
        return cls(np.packbits(bits), colours)


def find_duplicates(fingerprints: Sequence[Fingerprint | None]) -> list[int | None]:
    """For each picture, the index of the first one before it that shows the same; None where there is none (or no fingerprint)."""
    duplicates: list[int | None] = [None] * len(fingerprints)
    known = [(index, fingerprint) for index, fingerprint in enumerate(fingerprints) if fingerprint is not None]
    if not known:
        return duplicates
    bits = np.stack([fingerprint.bits for _, fingerprint in known])
    colours = np.stack([fingerprint.colours for _, fingerprint in known]).astype(np.int16)
    for row in range(1, len(known)):
        # 16 bytes at a time through a table: numpy counts bits by itself only from version 2 on.
        distances = _BITS[bits[:row] ^ bits[row]].sum(axis=1, dtype=np.uint16)
        for near in np.nonzero(distances <= SAME_BITS)[0]:
            if np.abs(colours[near] - colours[row]).mean() <= _SAME_COLOUR:
                duplicates[known[row][0]] = known[int(near)][0]
                break
    return duplicates
