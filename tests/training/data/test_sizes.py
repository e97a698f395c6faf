"""Training sizes: area kept, no stretching, little cropped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.errors import ConfigError, DatasetError
from textual_inversion.pictures.geometry import CENTRE, cropped_share
from textual_inversion.training.data.views import BUCKETS, OWN, Sizing, bucket_sizes

SIDES = st.sampled_from([128, 256, 384, 512, 640, 768, 1024])
STEPS = st.sampled_from([8, 16, 32, 64])
PICTURES = st.tuples(st.integers(64, 6000), st.integers(64, 6000))


@given(SIDES, SIDES, STEPS)
def test_buckets_keep_the_area_and_are_multiples_of_the_step(width: int, height: int, step: int) -> None:
    sizes = bucket_sizes(width, height, step)
    assert (width, height) in sizes
    assert len(set(sizes)) == len(sizes)
    for size in sizes:
        assert size[0] * size[1] <= width * height
        assert size == (width, height) or all(side % step == 0 and 64 <= side <= 2048 for side in size)
        assert size[::-1] in sizes or size == (width, height)
        # what rounding down to a step can cost
        assert size[0] * size[1] > width * height - step * max(size)


@given(PICTURES, STEPS)
def test_the_bucket_is_the_one_that_crops_least(picture: tuple[int, int], step: int) -> None:
    sizing = Sizing(512, 512, BUCKETS, step)
    chosen = sizing.size_of(picture)
    least = min(cropped_share(picture, size) for size in bucket_sizes(512, 512, step))
    assert cropped_share(picture, chosen) == least
    if 1 / 3 <= picture[0] / picture[1] <= 3:
        assert least < 0.15


def test_common_photographs() -> None:
    """3:2, 4:3 and 16:9: a tenth at most is lost, where a square loses a quarter to 44 %; finer steps lose next to nothing."""
    for aspect, size in {(6000, 4000): (640, 384), (4000, 3000): (576, 448), (1920, 1080): (640, 384), (3000, 4000): (448, 576)}.items():
        assert Sizing(512, 512, BUCKETS, 64).size_of(aspect) == size
        assert cropped_share(aspect, size) <= 0.1 + 1e-9
        assert cropped_share(aspect, (512, 512)) >= 0.25
        assert cropped_share(aspect, Sizing(512, 512, BUCKETS, 8).size_of(aspect)) < 0.012


@given(PICTURES, PICTURES)
def test_the_cropped_share_is_that_of_the_area(original: tuple[int, int], size: tuple[int, int]) -> None:
    scale = max(size[0] / original[0], size[1] / original[1])
    kept = size[0] * size[1] / (original[0] * scale * original[1] * scale)
    assert cropped_share(original, size) == pytest.approx(1 - kept, abs=1e-9)


@given(PICTURES, st.integers(1, 16))
def test_crops_are_spread_evenly_along_the_side_that_does_not_fit(original: tuple[int, int], crops: int) -> None:
    places = Sizing(256, 256, crops=crops).places(original)
    assert 1 <= len(places) <= crops
    assert len(set(places)) == len(places)
    if len(places) == 1:
        assert places == (CENTRE,)
        return
    axis = 0 if original[0] > original[1] else 1
    assert all(place[1 - axis] == 0.5 for place in places)
    along = [place[axis] for place in places]
    assert (along[0], along[-1]) == (0, 1)
    excess = max(original) * 256 / min(original) - 256
    assert all((b - a) * excess >= 8 - 1e-6 for a, b in zip(along, along[1:]))


@given(st.tuples(st.integers(64, 2055), st.integers(64, 2055)))
def test_an_own_size_loses_seven_pixels_at_most(original: tuple[int, int]) -> None:
    size = Sizing(512, 512, OWN, crops=4).size_of(original)
    assert all(kept % 8 == 0 and 0 <= given - kept <= 7 for given, kept in zip(original, size))
    assert Sizing(512, 512, OWN, crops=4).places(original) == (CENTRE,)


def test_refusals() -> None:
    with pytest.raises(ConfigError):
        Sizing(512, 512, "square")
    for original in ((63, 512), (512, 2056)):
        with pytest.raises(DatasetError, match="sides of 64 to 2048"):
            Sizing(512, 512, OWN).size_of(original)
