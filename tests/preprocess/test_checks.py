from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from textual_inversion.pictures.geometry import View
from textual_inversion.pictures.measures import Fingerprint, find_duplicates
from textual_inversion.preprocess.picture import check_enlargement, check_shape, check_sharpness


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A picture with structure at every scale, as photographs have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3))
    for cells in (3, 8, 20, 60, 160):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise.resize(size, Image.Resampling.BICUBIC), dtype=float) / cells**0.25
    return Image.fromarray((255 * (total - total.min()) / np.ptp(total)).astype(np.uint8))


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))


def test_blurred_and_empty_pictures_are_told_from_sharp_ones() -> None:
    for seed in range(5):
        assert check_sharpness(grey(scene(seed))) is None
        problem = check_sharpness(grey(scene(seed).filter(ImageFilter.GaussianBlur(4))))
        assert problem is not None
        assert problem.kind == "blurred"
    for size in ((200, 200), (1, 1), (2, 100)):
        assert check_sharpness(grey(Image.new("RGB", size))) is not None


def test_real_photographs_are_sharp_until_they_are_blurred() -> None:
    data = pytest.importorskip("skimage.data")
    for name in ("astronaut", "coffee", "cat", "rocket", "camera"):
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        assert check_sharpness(grey(image)) is None, name
        assert check_sharpness(grey(image.filter(ImageFilter.GaussianBlur(5)))) is not None, name


def test_enlarging_and_cutting_away_are_told() -> None:
    whole = View((0, 0, 1000, 1000), (512, 512))
    assert check_enlargement([View((0, 0, 500, 500), (512, 512))]) is None
    problem = check_enlargement([View((0, 0, 200, 200), (512, 512))])
    assert problem is not None
    assert "enlarged 2.6 times" in problem.text
    assert check_shape((1500, 1000), [whole]) is None
    problem = check_shape((3000, 1000), [whole])
    assert problem is not None
    assert problem.text.startswith("67% of it is cut away")
    assert check_shape((3000, 1000), [whole, View((900, 0, 1900, 1000), (512, 512))]) is None


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda image: image.resize((160, 120), Image.Resampling.LANCZOS),
    "stretched": lambda image: image.resize((200, 300)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.05),
    "recompressed": lambda image: as_jpeg(image, 30),
    "a little softer": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_the_same_picture_is_known_again(change: str) -> None:
    for seed in range(5):
        assert find_duplicates([Fingerprint.of(scene(seed)), Fingerprint.of(CHANGES[change](scene(seed)))]) == [None, 0]


def test_other_pictures_are_not_taken_for_the_same() -> None:
    fingerprints = [Fingerprint.of(scene(seed)) for seed in range(60)]
    assert find_duplicates(fingerprints) == [None] * 60
    red, blue = (Fingerprint.of(Image.new("RGB", (60, 60), colour)) for colour in ("red", "blue"))
    assert find_duplicates([red, None, blue, red, None]) == [None, None, None, 0, None]
    assert find_duplicates([]) == []
    assert find_duplicates([None]) == [None]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5), max_size=12))
def test_each_copy_points_at_the_first(seeds: list[int]) -> None:
    known = [Fingerprint.of(scene(seed, (60, 40))) for seed in range(6)]
    expected = [seeds.index(seed) if seeds.index(seed) < place else None for place, seed in enumerate(seeds)]
    assert find_duplicates([known[seed] for seed in seeds]) == expected
