"""What results are called, so that names stay the same from run to run. Knows nothing of pixels, captions or settings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from textual_inversion.preprocess.flips import PLACES

_RESULT = re.compile(r"(\d{5,})-(\d+)-(.+)\.png", re.DOTALL)
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]+')
_LONGEST = 150  # bytes of a caption in a name; file systems take 255 in all


def result_name(number: int, stem: str, part: int = 0, flip: str = "") -> str:
    """File name of a result, such as `00012-0-cat.png`.

    The middle number counts four to a part of a split picture: the picture itself, mirrored horizontally, vertically, both.
    """
    return f"{number:05d}-{part * len(PLACES) + PLACES[flip]}-{stem}.png"


def place_of(name: str) -> tuple[int, int] | None:
    """(number of the source, middle number) of a result's name; None for other names."""
    match = _RESULT.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def stem_of(name: str) -> str:
    """What follows the numbers in a result's name; the name itself when it is none."""
    match = _RESULT.fullmatch(name)
    return match[3] if match else name


def caption_stem(caption: str) -> str:
    """A caption as a part of a file name: without what file systems refuse, and not too long; empty when nothing is left."""
    text = " ".join(_UNSAFE.sub(" ", caption).split())
    cut = text.encode("utf-8")[:_LONGEST].decode("utf-8", errors="ignore")
    return cut.rstrip(" .,")


def number_sources(sources: list[Path], existing: Iterable[tuple[int, str]]) -> list[int]:
    """Number each source picture so that a second run finds the results of the first, even when pictures were added in between.

    Args:
        sources: picture files in order; at first each is numbered by its place.
        existing: (number, stem of the source) of what lies in the destination.

    Returns:
        One number a source, no two alike; a new one is also free in `existing`.
    """
    left = dict.fromkeys(sorted(existing))  # a dict, for its order
    taken = {number for number, _ in left}
    numbers = {place: place for place, source in enumerate(sources) if left.pop((place, source.stem), 0) is None}
    same: dict[str, list[int]] = {}
    for number, stem in reversed(left):
        same.setdefault(stem, []).append(number)
    free = (number for number in count(len(sources)) if number not in taken)
    for place, source in enumerate(sources):
        if place in numbers:
            continue
        if same.get(source.stem):
            numbers[place] = same[source.stem].pop()
        else:
            numbers[place] = place if place not in taken else next(free)
    return [numbers[place] for place in range(len(sources))]
