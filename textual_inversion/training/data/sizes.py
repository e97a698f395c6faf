"""The size at which each picture is trained, and the places of its crops. Sizes are (width, height) in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from textual_inversion.errors import ConfigError, DatasetError
from textual_inversion.pictures.geometry import CENTRE, DOWNSCALE, Place, Size, cropped_share

FIXED, BUCKETS, OWN = "fixed", "buckets", "own"
MIN_SIDE, MAX_SIDE = 64, 2048


@dataclass(frozen=True)
class Sizing:
    """How pictures get their training size.

    Attributes:
        width, height: the training size in pixels; with buckets only their area counts.
        method: `fixed` (every picture at that size), `buckets` (the size of that area that crops a picture least) or `own` (its own
            size, cut to multiples of 8).
        step: sides of buckets are multiples of this (8 to 64).
        crops: most crops of one picture (1 to 16); they are spread evenly along the side that does not fit.

    Raises:
        ConfigError: no such method.
    """

    width: int
    height: int
    method: str = FIXED
    step: int = 64
    crops: int = 1

    def __post_init__(self) -> None:
        if self.method not in (FIXED, BUCKETS, OWN):
            raise ConfigError(f"The way of sizing is {self.method!r}; it must be {FIXED}, {BUCKETS} or {OWN}.", setting="method")

    def size_of(self, original: Size) -> Size:
        """The training size of a picture of the size `original`.

        Raises:
            DatasetError: it is to keep its size, and a side is below 64 or above 2048 pixels.
        """
        if self.method == OWN:
            width, height = (side // DOWNSCALE * DOWNSCALE for side in original)
            if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE:
                limits = f"pictures that keep their size may have sides of {MIN_SIDE} to {MAX_SIDE}"
                raise DatasetError(f"it is {original[0]} x {original[1]} pixels, and {limits}")
            return width, height
        if self.method == BUCKETS:
            return min(
                bucket_sizes(self.width, self.height, self.step), key=lambda size: (cropped_share(original, size), -size[0] * size[1])
            )
        return self.width, self.height

    def places(self, original: Size) -> tuple[Place, ...]:
        """The places of the crops of such a picture: the centre alone, or places spread evenly, 8 pixels apart at least."""
        size = self.size_of(original)
        if self.crops == 1 or self.method == OWN:
            return (CENTRE,)
        scale = max(size[0] / original[0], size[1] / original[1])
        excess = [side * scale - wanted for side, wanted in zip(original, size)]  # the part that does not fit, of each side
        count = min(self.crops, 1 + int(max(excess) // DOWNSCALE))
        if count < 2:
            return (CENTRE,)
        across = excess[0] >= excess[1]
        along = [place / (count - 1) for place in range(count)]
        return tuple((place, 0.5) if across else (0.5, place) for place in along)


@lru_cache(maxsize=32)
def bucket_sizes(width: int, height: int, step: int) -> tuple[Size, ...]:
    """Sizes whose area is that of `width` x `height` or a little less, sides multiples of `step`, from half to twice the square's side."""
    area = width * height
    side = area**0.5
    sides = [value for value in range(step, MAX_SIDE + 1, step) if max(MIN_SIDE, side / 2) <= value <= side * 2]
    sizes = {(long, int(area / long // step) * step) for long in sides}
    sizes = {size for size in sizes | {(b, a) for a, b in sizes} if min(size) >= max(MIN_SIDE, step) and max(size) <= MAX_SIDE}
    return tuple(sorted(sizes | {(width, height)}))
