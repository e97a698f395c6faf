"""Where crops go: towards detail and corners, and towards faces where OpenCV's cascade is there."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from textual_inversion.pictures import salience
from textual_inversion.pictures.salience import (
    FaceFinder,
    FocalWeights,
    _corners,
    _entropy_marks,
    debug_picture,
    find_focus,
    one_thread,
    why_no_faces,
)
from textual_inversion.preprocess.run import PreprocessConfig, notes, plan, preprocess

USUAL = FocalWeights(0.9, 0.15, 0.5)


def plain(width: int = 300, height: int = 120) -> Image.Image:
    return Image.new("L", (width, height), 128)


def patch(image: Image.Image, left: int, top: int, side: int = 60) -> np.ndarray:
    """The picture with squares of a chequerboard there."""
    draw = ImageDraw.Draw(image)
    for x in range(0, side, 12):
        for y in range(0, side, 12):
            draw.rectangle((left + x, top + y, left + x + 11, top + y + 11), fill=255 * ((x + y) // 12 % 2))
    return np.asarray(image)


@pytest.mark.parametrize("weights", [FocalWeights(0, 1, 0), FocalWeights(0, 0, 1), USUAL])
@pytest.mark.parametrize("left", [0, 120, 240])
def test_the_crop_goes_where_the_picture_is_rich(weights: FocalWeights, left: int) -> None:
    across = find_focus(patch(plain(), left, 20), 1.0, weights, [])
    start = across.position * (300 - 120)
    assert start <= left
    assert left + 60 <= start + 120
    down = find_focus(np.ascontiguousarray(patch(plain(), left, 20).T), 1.0, weights, [])
    assert abs(down.position - across.position) < 0.25  # the bottom of a tall picture counts less, for watermarks


def test_nothing_to_see_leaves_the_crop_in_the_middle() -> None:
    assert abs(find_focus(np.asarray(plain()), 1.0, USUAL, []).position - 0.5) < 0.01
    assert find_focus(np.asarray(plain(100, 100)), 1.0, USUAL, []).position == 0.5


def test_a_face_pulls_more_than_detail_elsewhere() -> None:
    grey = patch(plain(), 0, 20)
    face = (230.0, 30.0, 270.0, 80.0)
    focus = find_focus(grey, 1.0, USUAL, [face])
    start = focus.position * 180
    assert start <= 230
    assert start + 120 >= 270
    assert focus.faces == ((230 / 300, 0.25, 0.9, 80 / 120),)
    assert find_focus(grey, 1.0, FocalWeights(0, 0.15, 0.5), [face]).position < 0.2


@settings(max_examples=40)
@given(st.integers(8, 90), st.integers(8, 90), st.floats(0.2, 5), st.integers(0, 2**32 - 1))
def test_any_picture_has_a_place_for_its_crop(width: int, height: int, aspect: float, seed: int) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    focus = find_focus(grey, aspect, USUAL, [(0, 0, width / 2, height / 2)])
    assert 0 <= focus.position <= 1
    assert all(0 <= x < 1 and 0 <= y < 1 for x, y in focus.corners)


def test_running_histograms_give_each_windows_entropy() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (20, 40), dtype=np.uint8)
    grey[:, 20:] //= 4

    def entropy(window: np.ndarray) -> float:
        shares = np.bincount(window.ravel() // 8, minlength=32) / window.size
        return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())

    expected = np.array([entropy(grey[:, start : start + 15]) for start in range(26)])
    spread = expected.max() - expected.min()
    assert np.allclose(_entropy_marks(grey, 15), (expected - expected.min()) / max(spread, 0.5))


def test_corners_are_where_two_edges_meet() -> None:
    image = plain(120, 120)
    ImageDraw.Draw(image).rectangle((30, 30, 79, 79), fill=255)
    corners = _corners(np.asarray(image))
    assert len(corners) >= 4
    for corner in ((30, 30), (79, 30), (30, 79), (79, 79)):
        assert np.abs(corners - corner).max(axis=1).min() <= 3
    # None along the edges, but cells may hold one of their ends.
    assert all(min(abs(x - 30), abs(x - 79)) <= 8 and min(abs(y - 30), abs(y - 79)) <= 8 for x, y in corners)


def test_the_debug_picture_shows_the_crop(tmp_path: Path) -> None:
    image = Image.new("RGB", (100, 50))
    focus = find_focus(np.asarray(image.convert("L")), 1.0, USUAL, [(10, 10, 20, 20)])
    shown = debug_picture(image, focus, [(0, 0, 50, 50)])
    assert shown.getpixel((0, 25)) == (0x22, 0xC5, 0x5E)
    assert shown.getpixel((10, 15)) == (0xEF, 0x44, 0x44)
    assert image.getpixel((0, 25)) == (0, 0, 0)


# faces


def test_without_opencv_it_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "OpenCV is not installed" in why_no_faces()
    assert FaceFinder().find(np.zeros((50, 50), np.uint8)) == []
    (tmp_path / "in").mkdir()
    Image.fromarray(patch(plain(), 230, 20)).save(tmp_path / "in" / "a.png")
    config = PreprocessConfig(str(tmp_path / "in"), str(tmp_path / "out"), width=64, height=64, focal_crop=True, focal_debug=True)
    report = preprocess(config)
    assert report.notes == [why_no_faces()]
    assert len(report.written) == 1
    assert [path.name for path in (tmp_path / "out" / "focal-point").iterdir()] == ["00000-a.jpg"]
    assert plan(config)[0].views[0].box[0] > 150
    assert notes(PreprocessConfig(str(tmp_path), str(tmp_path / "out"), focal_crop=True, face_weight=0)) == []


def test_an_opencv_without_cascades_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("cv2")
    module.__version__ = "5.0.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", module)
    assert why_no_faces().startswith("OpenCV 5.0.0 has no face cascade, so")


def test_profiles_are_looked_for_from_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cascade:
        def __init__(self, file: str) -> None:
            self.profile = "profileface" in file

        def detectMultiScale(self, grey: np.ndarray, **_: object) -> list[tuple[int, int, int, int]]:
            return [(5, 10, 20, 20)] if self.profile and grey[0, 0] else []

    monkeypatch.setattr(salience, "why_no_faces", lambda: "")
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(CascadeClassifier=Cascade))  # type: ignore[arg-type]
    grey = np.zeros((60, 100), np.uint8)
    assert FaceFinder().find(grey) == []
    grey[0, -1] = 1  # so it is seen in the mirror only
    assert FaceFinder().find(grey) == [(75, 10, 95, 30)]


def test_a_real_face_is_found() -> None:
    if why_no_faces():
        pytest.skip(why_no_faces())
    data = pytest.importorskip("skimage.data")
    cv2 = importlib.import_module("cv2")
    grey = np.asarray(Image.fromarray(data.astronaut()).convert("L").resize((256, 256)))
    threads = cv2.getNumThreads()
    with one_thread():
        assert cv2.getNumThreads() == 1
        left, top, right, bottom = FaceFinder().find(grey)[0]
    assert cv2.getNumThreads() == threads
    assert 75 < left < 113 < right < 150
    assert 25 < top < 55 < bottom < 110
