from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from textual_inversion.errors import DatasetError
from textual_inversion.training.data.training_set import DatasetOptions, scan_training_set
from textual_inversion.training.data.views import OWN, Sizing


def options(width: int = 64, height: int = 64, method: str = "fixed", **more: object) -> DatasetOptions:
    return DatasetOptions(Sizing(width, height, method), **more)  # type: ignore[arg-type]


def test_pictures_captions_and_what_was_skipped(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "10-red.png")
    Image.new("RGB", (20, 40), "blue").save(tmp_path / "2-blue.jpg")
    (tmp_path / "2-blue.txt").write_text("a blue wall")
    (tmp_path / "3.png").write_text("not a picture")
    (tmp_path / "4.webp").write_bytes(b"")
    (tmp_path / "5.heic").write_bytes(b"\0\0\0\x18ftypheic")
    training_set = scan_training_set(tmp_path, options(32, 16))
    assert [(picture.path.name, picture.caption, picture.original) for picture in training_set.pictures] == [
        ("2-blue.jpg", "a blue wall", (20, 40)),
        ("10-red.png", "red", (40, 20)),
    ]
    assert training_set.sizes() == {(32, 16): [0, 1]}
    (view,) = training_set.views(1)
    assert view.pixels.shape == (3, 16, 32)
    assert view.pixels[:, 8, 16].tolist() == [255, 0, 0]
    assert [name for name, _ in training_set.skipped] == ["3.png", "4.webp", "5.heic"]
    assert "empty (0 bytes)" in training_set.skipped[1][1]
    assert "save it as JPEG or PNG" in training_set.skipped[2][1]


def test_the_words_of_file_names(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "3-red_cat.png")
    assert scan_training_set(tmp_path, options(word_regex="[a-z]+", word_join=", ")).pictures[0].caption == "red, cat"


def test_a_mask_is_no_picture(tmp_path: Path) -> None:
    for name in ("cat.jpg", "cat-mask.png", "Dog-Mask.PNG", "dog.png", "the-mask.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    assert [picture.path.name for picture in scan_training_set(tmp_path, options()).pictures] == ["cat.jpg", "dog.png", "the-mask.png"]


def test_subfolders_repeat_as_their_names_say(tmp_path: Path) -> None:
    for place in (".", "5_cats", "5_cats/inner", "dogs", ".hidden", "0_none"):
        (tmp_path / place).mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(tmp_path / place / "a.png")
    assert [picture.repeats for picture in scan_training_set(tmp_path, options()).pictures] == [1]
    pictures = scan_training_set(tmp_path, options(subfolders=True)).pictures
    assert [(str(picture.path.parent.relative_to(tmp_path)), picture.repeats) for picture in pictures] == [
        (".", 1),
        ("0_none", 1),
        ("5_cats", 5),
        ("5_cats/inner", 1),
        ("dogs", 1),
    ]
    (tmp_path / "empty").mkdir()
    for name in ("gone", "empty"):
        with pytest.raises(DatasetError) as error:
            scan_training_set(tmp_path / name, options(subfolders=True))
        assert error.value.path == tmp_path / name


def test_pictures_that_keep_their_size_must_have_one_that_can_be_trained(tmp_path: Path) -> None:
    for name, size in (("small.png", (63, 500)), ("good.png", (71, 500)), ("large.png", (64, 2056))):
        Image.new("1", size).save(tmp_path / name)
    training_set = scan_training_set(tmp_path, options(method=OWN))
    assert training_set.sizes() == {(64, 496): [0]}
    reasons = dict(training_set.skipped)
    assert "small.png is left out: it is 63 x 500 pixels" in reasons["small.png"]
    assert "sides of 64 to 2048" in reasons["large.png"]


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    for folder in (tmp_path / "gone", tmp_path):
        with pytest.raises(DatasetError) as error:
            scan_training_set(folder, options())
        assert error.value.path == folder
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"The one picture in .* cannot be used: a\.png cannot be read: it is empty"):
        scan_training_set(tmp_path, options())


def test_animations_are_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.png")
    assert "a.gif is an animation; its first frame is learned." in scan_training_set(tmp_path, options(64, 64)).notes
    frames[0].save(tmp_path / "c.webp", save_all=True, append_images=frames[1:])
    assert "2 pictures are animations, such as a.gif; the first frame of each is learned." in scan_training_set(tmp_path, options()).notes
