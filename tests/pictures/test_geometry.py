"""Boxes, sizes and the cropper."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from textual_inversion.pictures.geometry import Box, cover, crop_box, cut, fit_size

LENGTH = st.integers(1, 5000)
SIDE = st.integers(8, 256).map(lambda eighths: eighths * 8)
SIZE = st.tuples(LENGTH, LENGTH)


def assert_inside(box: Box, size: tuple[int, int]) -> None:
    left, top, right, bottom = box
    assert -1e-6 <= left < right <= size[0] + 1e-6
    assert -1e-6 <= top < bottom <= size[1] + 1e-6


@given(SIZE, SIDE, SIDE, st.floats(0, 1))
def test_a_crop_has_the_wanted_shape_and_is_as_large_as_can_be(size: tuple[int, int], width: int, height: int, position: float) -> None:
    box = crop_box(size, width / height, (position, position))
    assert_inside(box, size)
    wide, high = box[2] - box[0], box[3] - box[1]
    assert math.isclose(wide / high, width / height, rel_tol=1e-6)
    assert math.isclose(wide, size[0], rel_tol=1e-9) or math.isclose(high, size[1], rel_tol=1e-9)


@given(SIZE, SIDE, SIDE)
def test_a_fitted_size_is_inside_and_keeps_the_shape(size: tuple[int, int], width: int, height: int) -> None:
    fitted = fit_size(size, width, height)
    scale = min(width / size[0], height / size[1])
    for side, most, length in zip(fitted, (width, height), size):
        assert side % 8 == 0
        assert 8 <= side <= most
        assert abs(side - length * scale) <= 4 or side == 8


def test_cutting_takes_the_box_and_keeps_the_colours_under_no_weight() -> None:
    image = Image.new("RGBA", (40, 20), (200, 100, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 20, 20))
    right = cut(image, (20, 0, 40, 20), (64, 64))
    assert (right.mode, right.size, right.getpixel((32, 32))) == ("RGBA", (64, 64), (200, 100, 0, 0))
    left = cut(image.convert("RGB"), (0, 0, 20, 20), (8, 8))
    assert left.crop((0, 0, 4, 8)).getcolors() == [(32, (0, 0, 255))]  # at the border, Lanczos looks a little over it


@settings(deadline=None, max_examples=40)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 20), st.integers(0, 20))
def test_a_box_on_whole_pixels_is_cut_without_a_change(width: int, height: int, left: int, top: int) -> None:
    pixels = np.random.default_rng(width * height).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    image, box = Image.fromarray(pixels), (left, top, left + width, top + height)
    part = cut(image, box, (width, height))
    assert np.array_equal(np.asarray(part), pixels[top : top + height, left : left + width])
    assert np.array_equal(np.asarray(part), np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 64), st.integers(8, 64))
def test_covering_gives_exactly_the_size_and_keeps_the_centre(source_width: int, source_height: int, width: int, height: int) -> None:
    image = Image.new("RGB", (source_width, source_height), (10, 200, 30))
    result = cover(image, (width, height))
    assert result.size == (width, height)
    assert result.getpixel((width // 2, height // 2)) == (10, 200, 30)


def test_covering_crops_the_sides_equally_without_stretching() -> None:
    image = Image.new("RGB", (90, 30), "black")
    image.paste("white", (30, 0, 60, 30))
    assert np.asarray(cover(image, (60, 60))).mean() > 247
