"""From the size of a picture to the sizes and places of its results."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.geometry import Box
from textual_inversion.preprocess.layout import FLIPS, auto_size, flipped, lay_out, split_boxes
from textual_inversion.settings.preprocessing import PreprocessConfig

LENGTH = st.integers(1, 5000)
SIDE = st.integers(8, 256).map(lambda eighths: eighths * 8)
SIZE = st.tuples(LENGTH, LENGTH)


def assert_inside(box: Box, size: tuple[int, int]) -> None:
    left, top, right, bottom = box
    assert -1e-6 <= left < right <= size[0] + 1e-6
    assert -1e-6 <= top < bottom <= size[1] + 1e-6


@given(SIZE, SIDE, SIDE, st.floats(0, 1), st.floats(0, 0.9))
def test_parts_cover_the_picture_and_overlap_enough(
    size: tuple[int, int], width: int, height: int, threshold: float, overlap: float
) -> None:
    aspect = width / height
    ratio = min(size[0] / size[1] / aspect, aspect * size[1] / size[0])
    boxes = split_boxes(size, aspect, threshold, overlap)
    assert bool(boxes) == (ratio < 1 and ratio <= threshold) or math.isclose(ratio, 1)
    if not boxes:
        return
    axis = 0 if size[0] / size[1] > aspect else 1
    length = boxes[0][axis + 2] - boxes[0][axis]
    for box in boxes:
        assert_inside(box, size)
        assert math.isclose((box[2] - box[0]) / (box[3] - box[1]), aspect, rel_tol=1e-6)
    assert abs(boxes[0][axis]) < 1e-6
    assert math.isclose(boxes[-1][axis + 2], size[axis], rel_tol=1e-9)
    for one, other in zip(boxes, boxes[1:]):
        assert one[axis + 2] - other[axis] >= (overlap - 1e-6) * length
    # One part fewer would not do.
    assert len(boxes) == 2 or (size[axis] - length) / (len(boxes) - 2) > length * (1 - overlap) * (1 - 1e-6)


@pytest.mark.parametrize(("size", "count"), [((1000, 400), 3), ((400, 1000), 3), ((800, 400), 3), ((780, 400), 0), ((400, 400), 0)])
def test_split_as_a1111_counts(size: tuple[int, int], count: int) -> None:
    """Its formula: ceil((long - wanted * overlap) / (wanted * (1 - overlap))), from twice the wanted length on."""
    assert len(split_boxes(size, 1.0, 0.5, 0.2)) == count


BOUNDS = PreprocessConfig("from", "to", auto_size=True)
OPTIONS = [(width, height) for width in range(384, 769, 64) for height in range(384, 769, 64) if width * height <= 640 * 640]


@given(SIZE, st.sampled_from(["area", "error"]), st.floats(0, 1))
def test_the_chosen_size_is_the_best_within_the_bounds(size: tuple[int, int], objective: str, threshold: float) -> None:
    def error(option: tuple[int, int]) -> float:
        return 1 - min(size[0] / size[1] / (option[0] / option[1]), (option[0] / option[1]) / (size[0] / size[1]))

    able = [option for option in OPTIONS if error(option) <= threshold - 1e-9]
    chosen = auto_size(size, replace(BOUNDS, objective=objective, error_threshold=threshold))
    if chosen is None:
        assert able == []
        return
    assert error(chosen) <= threshold + 1e-9
    assert 384 <= chosen[0] <= 768
    assert chosen[0] % 64 == chosen[1] % 64 == 0
    assert chosen[0] * chosen[1] <= 640 * 640
    for option in able:
        if objective == "area":
            assert option[0] * option[1] <= chosen[0] * chosen[1]
        else:
            assert error(option) >= error(chosen) - 1e-9


@pytest.mark.parametrize(
    ("size", "area", "error"),
    [
        ((4000, 3000), (704, 576), (512, 384)),
        ((1000, 1000), (640, 640), (640, 640)),
        ((1080, 1920), (448, 768), (384, 704)),
        ((640, 427), (768, 512), (768, 512)),
    ],
)
def test_sizes_that_a1111_chooses(size: tuple[int, int], area: tuple[int, int], error: tuple[int, int]) -> None:
    assert auto_size(size, replace(BOUNDS, objective="area")) == area
    assert auto_size(size, replace(BOUNDS, objective="error")) == error


def config(**values: object) -> PreprocessConfig:
    return PreprocessConfig("from", "to", **values)  # type: ignore[arg-type]


def test_a_picture_between_two_equal_shapes_comes_out_as_in_earlier_runs() -> None:
    assert auto_size((720, 378), BOUNDS) == (768, 384)
    wide = replace(BOUNDS, objective="area", max_area=393216)
    assert auto_size((500, 500), wide) == (640, 576)


def test_steps_follow_each_other() -> None:
    assert [view.size for view in lay_out((2000, 500), config(split=True, auto_size=True), "a")] == [(640, 640)] * 5
    assert [view.part for view in lay_out((500, 1500), config(split=True), "a")] == [0, 1, 2, 3]
    assert lay_out((1000, 500), config(resize="fit"), "a")[0].size == (512, 256)
    kept = lay_out((1000, 501), config(resize="keep"), "a")[0]
    assert (kept.size, kept.box) == ((1000, 501), (0, 0, 1000, 501))
    assert lay_out((1000, 500), config(resize="fit", focal_crop=True), "a")[0].size == (512, 512)
    assert lay_out((800, 600), config(auto_size=True, focal_crop=True), "a")[0].size == (704, 576)
    with pytest.raises(DatasetError, match=r"wide\.png \(3000x600\) fits no size within the bounds and an error of 0\.1; widen") as error:
        lay_out((3000, 600), config(auto_size=True), "wide.png")
    assert error.value.setting == "error_threshold"


@settings(max_examples=50)
@given(SIZE, st.booleans(), st.sampled_from(["crop", "fit", "keep"]), SIDE, SIDE)
def test_every_view_lies_in_its_picture_and_is_not_stretched(
    size: tuple[int, int], split: bool, resize: str, width: int, height: int
) -> None:
    for view in lay_out(size, config(split=split, resize=resize, width=width, height=height), "a"):
        assert_inside(view.box, size)
        aspect = (view.box[2] - view.box[0]) / (view.box[3] - view.box[1])
        assert math.isclose(aspect, view.size[0] / view.size[1], rel_tol=1e-6)


def test_mirroring() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    image = Image.fromarray(pixels)
    expected = {"": pixels, "horizontal": pixels[:, ::-1], "vertical": pixels[::-1], "both": pixels[::-1, ::-1]}
    assert set(expected) == set(FLIPS)
    for way, wanted in expected.items():
        assert np.array_equal(np.asarray(flipped(image, way)), wanted)
