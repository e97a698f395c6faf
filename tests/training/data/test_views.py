"""Crops and loss weights, checked against plain array arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.geometry import CENTRE, Box, Place, Size, cut
from textual_inversion.training.data.views import TrainingView, ViewOptions, load_views, loss_weight, to_tensor, view_box

LEARN = ViewOptions(weighted=True)


def ramp(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x % 256, y % 256, x // 256], axis=-1).astype(np.uint8))


def view_of(path: Path, size: tuple[int, int], options: ViewOptions = LEARN) -> TrainingView:
    with Image.open(path) as image:
        original = image.size
    (view,) = load_views(path, original, size, (CENTRE,), options)
    return view


def crop(picture: Image.Image, size: Size, place: Place = CENTRE, *, whole: bool = False) -> np.ndarray:
    return np.asarray(cut(picture, view_box(picture.size, size, place, whole=whole), size))


def whole_of(size: Size) -> Box:
    return 0, 0, *size


@given(st.sampled_from([(0.0, 0.5), (0.5, 0.5), (1.0, 0.5)]), st.integers(64, 150))
@settings(deadline=None)
def test_a_crop_of_the_right_height_is_a_cut(place: tuple[float, float], width: int) -> None:
    picture = ramp(width, 64)
    left = round((width - 64) * place[0] - 1e-9)
    if (width - 64) * place[0] == left:
        assert np.array_equal(crop(picture, (64, 64), place), np.asarray(picture)[:, left : left + 64])


def test_whole_pictures_are_cut_at_the_centre_and_never_resampled() -> None:
    picture = ramp(75, 71)
    assert np.array_equal(crop(picture, (72, 64), whole=True), np.asarray(picture)[3:67, 1:73])


def test_the_weight_is_the_mean_of_each_latents_pixels_right_way_round() -> None:
    """A1111 swaps width and height here; on a picture that is not square that would be another shape."""
    values = np.zeros((64, 128), dtype=np.uint8)
    values[:, :32] = 255  # the left quarter
    values[:8, :] = 51  # the upper eighth, a little
    weight = loss_weight(Image.fromarray(values), (0, 0, 128, 64), (128, 64))
    assert weight is not None
    assert weight.shape == (1, 8, 16)
    expected = values.reshape(8, 8, 16, 8).mean(axis=(1, 3))
    torch.testing.assert_close(weight[0], torch.from_numpy(expected / expected.mean()).float())
    assert weight[0, 4, :4].min() > 1
    assert weight[0, 4, 4:].max() == 0


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(64, 64), (128, 64), (64, 192)]))
def test_weights_have_mean_one_and_begin_at_zero(seed: int, size: tuple[int, int]) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    weight = loss_weight(Image.fromarray(values), whole_of(size), size)
    assert weight is not None
    assert float(weight.mean()) == pytest.approx(1, abs=1e-5)
    assert float(weight.min()) == 0


def test_one_grey_counts_alike_and_black_nothing() -> None:
    assert torch.equal(loss_weight(Image.new("L", (64, 64), 7), (0, 0, 64, 64), (64, 64)), torch.ones(1, 8, 8))  # type: ignore[arg-type]
    assert loss_weight(Image.new("L", (64, 64)), (0, 0, 64, 64), (64, 64)) is None


def test_transparency_is_a_weight_when_asked_for_and_a_colour_always(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (128, 64), (200, 10, 10, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 64, 64))
    picture.save(tmp_path / "a.png")
    view = view_of(tmp_path / "a.png", (128, 64))
    assert view.weight is not None
    assert torch.equal(view.weight[0], torch.tensor([0.0] * 8 + [2.0] * 8).expand(8, 16))
    assert view.pixels[:, 30, 10].tolist() == [255, 255, 255]
    assert view_of(tmp_path / "a.png", (128, 64), ViewOptions("#102030")).pixels[:, 30, 10].tolist() == [16, 32, 48]
    assert view_of(tmp_path / "a.png", (128, 64), ViewOptions()).weight is None
    Image.new("RGBA", (64, 64), "red").save(tmp_path / "opaque.png")
    assert view_of(tmp_path / "opaque.png", (64, 64)).weight is None


def test_a_mask_beside_the_picture_comes_before_its_transparency(tmp_path: Path) -> None:
    Image.new("RGBA", (128, 64), (9, 9, 9, 100)).save(tmp_path / "a.png")
    mask = Image.new("L", (64, 32))  # of half the size
    mask.paste(255, (0, 16, 64, 32))
    mask.save(tmp_path / "a-mask.png")
    weight = view_of(tmp_path / "a.png", (128, 64)).weight
    assert weight is not None
    assert weight[0, :3].max() == 0
    assert weight[0, 5:].min() > 1.5
    (tmp_path / "a-mask.png").write_bytes(b"")
    with pytest.raises(DatasetError) as error:
        view_of(tmp_path / "a.png", (128, 64))
    assert error.value.path == tmp_path / "a-mask.png"


def test_a_mask_turns_and_is_cropped_with_its_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    stored = Image.new("RGBA", (64, 192), (50, 50, 50, 0))
    stored.paste((250, 250, 250, 255), (0, 0, 64, 64))  # upright: on the right
    stored.save(tmp_path / "a.png", exif=exif)
    # the left crop shows nothing that counts, and is left out
    (right,) = load_views(tmp_path / "a.png", (192, 64), (128, 64), ((0.0, 0.5), (1.0, 0.5)), LEARN)
    assert right.weight is not None
    assert right.weight[0, :, :7].max() == 0
    assert right.weight[0, :, 9:].min() > 1
    assert right.pixels[0, 30, 120] == 250


def test_a_picture_of_which_nothing_counts_says_so(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"Nothing of a\.png would be learned: .* turn the loss weight off") as error:
        view_of(tmp_path / "a.png", (64, 64))
    assert error.value.path == tmp_path / "a.png"


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(64, 300), st.integers(64, 300)),
    st.sampled_from([(64, 64), (96, 64), (64, 128)]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_crops_are_those_of_pillows_fit(original: tuple[int, int], size: tuple[int, int], place: float) -> None:
    picture = ramp(*original)
    expected = ImageOps.fit(picture, size, Image.Resampling.LANCZOS, centering=(place, place))
    assert np.array_equal(crop(picture, size, (place, place)), np.asarray(expected))
    mask = picture.getchannel(0)
    expected_mask = np.asarray(ImageOps.fit(mask, (size[0] // 8, size[1] // 8), Image.Resampling.BOX, centering=(place, place)))
    weight = loss_weight(mask, view_box(original, size, (place, place), whole=False), size)
    assert weight is not None
    values = expected_mask.astype(np.float32) - expected_mask.min()
    torch.testing.assert_close(weight[0], torch.from_numpy(values / values.mean()))


def test_to_tensor_is_channels_height_width() -> None:
    image = Image.new("RGB", (5, 3), (1, 2, 3))
    image.putpixel((4, 1), (9, 8, 7))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 3, 5)
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    assert tensor[:, 1, 4].tolist() == [9, 8, 7]
    assert tensor[:, 0, 0].tolist() == [1, 2, 3]
