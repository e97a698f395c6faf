from __future__ import annotations

import io
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.folder import find_images
from textual_inversion.pictures.reading import Head, on_colour, picture_size, read_colours, read_head, read_image


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    """Every corner differs, so turned and mirrored pictures can be told apart."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def distance(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return float(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).mean())


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tiff", "gif", "avif"])
def test_every_format_is_read_as_rgb(tmp_path: Path, ending: str) -> None:
    Image.init()
    if ending == "avif" and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"a.{ending}"
    gradient().save(path)
    image = read_image(path)
    assert image.mode == "RGB"
    assert distance(image, gradient()) < 12
    assert image.info == {}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    gradient().save(path, exif=exif, **({"quality": 95} if ending in ("jpg", "webp") else {}))
    with Image.open(path) as stored:
        stored.load()
        # Pillow turns a TIFF while it loads it, and its older versions would turn it once more here.
        expected = (stored if ending == "tiff" else ImageOps.exif_transpose(stored)).convert("RGB")
    assert distance(read_image(path), expected) == 0
    assert expected.size == ((24, 16) if orientation < 5 else (16, 24))


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    gradient().save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x01\x12")
    assert distance(read_image(path), gradient()) < 12


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.save(tmp_path / "rgba.png")
    read = read_image(tmp_path / "rgba.png")
    assert [read.getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), (127, 127, 127), (255, 255, 255)]

    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert read_image(tmp_path / "palette.png").getpixel((4, 4)) == (255, 255, 255)

    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png").getpixel((4, 4)) == (255, 255, 255)


def test_palette_cmyk_and_black_and_white(tmp_path: Path) -> None:
    gradient().quantize(64).save(tmp_path / "p.png")
    gradient().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    gradient().convert("1").save(tmp_path / "1.png")
    assert distance(read_image(tmp_path / "p.png"), gradient()) < 12
    assert distance(read_image(tmp_path / "cmyk.jpg"), gradient()) < 12
    assert read_image(tmp_path / "1.png").mode == "RGB"


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, ending: str) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / f"deep.{ending}")
    grey = np.asarray(read_image(tmp_path / f"deep.{ending}"))[..., 0]
    assert np.abs(grey.astype(int).ravel() - np.arange(256)).max() <= 1


def test_floating_point_tiff(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "float.tiff")
    grey = np.asarray(read_image(tmp_path / "float.tiff"))[..., 0]
    assert np.abs(grey.astype(int).ravel() - np.arange(256)).max() <= 1


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], duration=50)
    assert distance(read_image(tmp_path / f"a.{ending}"), frames[0]) < 4


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a picture\n", "contents are not"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "contents are not"),
        (png_bytes()[:20], "."),
        (png_bytes()[:600], "damaged or cut short"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=f"^bad.png cannot be read: .*{reason}.*; replace it") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name, said in (("gone.png", "no such file"), ("folder.png", "cannot be read")):
        with pytest.raises(DatasetError, match=said) as error:
            read_image(tmp_path / name)
        assert error.value.path == tmp_path / name


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (14_000, 14_000)).save(path)
    with pytest.raises(DatasetError, match="more than 120 million pixels"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some hosts do
    with pytest.raises(DatasetError, match="more than 120 million pixels"):
        read_image(path)


def encoded(format_: str) -> bytes:
    buffer = io.BytesIO()
    gradient().save(buffer, format_)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"]), st.data())
def test_damaged_files_are_read_or_refused_never_worse(tmp_path: Path, format_: str, data: st.DataObject) -> None:
    content = bytearray(encoded(format_))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.png"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        outcome = read_image(path).mode
    except DatasetError as error:
        outcome = str(error)
    assert outcome == "RGB" or outcome.startswith("x.png cannot be read")


def test_avif_that_this_pillow_cannot_read_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.setattr(Image, "OPEN", {name: opener for name, opener in Image.OPEN.items() if name != "AVIF"})
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x20ftypavif")
    with pytest.raises(DatasetError, match="the installed Pillow does not read AVIF"):
        read_image(find_images(tmp_path)[0])


@pytest.mark.parametrize("mark", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "tiff", "png", "webp"])
def test_the_size_in_the_header_is_that_of_the_picture(tmp_path: Path, ending: str, mark: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = mark
    path = tmp_path / f"a.{ending}"
    gradient().save(path, exif=exif)
    for upright in (True, False):
        assert picture_size(path, upright=upright) == read_colours(path, upright=upright).size
    assert picture_size(path) == ((16, 24) if mark > 4 else (24, 16))


@pytest.mark.parametrize("mark", [1, 6])
def test_a_jpeg_comes_smaller_but_not_below_what_will_do(tmp_path: Path, mark: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = mark
    gradient(960, 640).save(tmp_path / "a.jpg", quality=95, exif=exif)
    whole = read_colours(tmp_path / "a.jpg")
    for least in ((200, 200), (90, 100), (300, 100)):
        small = read_colours(tmp_path / "a.jpg", least)
        assert small.width >= least[0]
        assert small.height >= least[1]
        assert small.width * 2 <= whole.width
        assert distance(small, whole.resize(small.size, Image.Resampling.BOX)) < 3
    assert read_colours(tmp_path / "a.jpg", (2000, 2000)).size == whole.size


def test_transparency_stays_until_it_is_laid_on_a_colour(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 4, 8))
    clear.save(tmp_path / "a.png")
    clear.convert("P").save(tmp_path / "b.gif", transparency=clear.convert("P").getpixel((7, 0)))
    Image.new("RGBA", (8, 8), "red").save(tmp_path / "opaque.png")
    read = read_colours(tmp_path / "a.png")
    assert (read.mode, read.getpixel((7, 0))) == ("RGBA", (255, 0, 0, 0))
    assert on_colour(read, "#00ff00").getpixel((7, 0)) == (0, 255, 0)
    assert on_colour(read, "black").getpixel((0, 0)) == (0, 0, 255)
    assert read_colours(tmp_path / "b.gif").mode == "RGBA"
    assert read_colours(tmp_path / "opaque.png").mode == "RGB"


def test_a_size_that_cannot_be_read_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(DatasetError) as error:
        picture_size(tmp_path / "a.png")
    assert error.value.path == tmp_path / "a.png"


@pytest.mark.parametrize("kind", ["text", "profile"])
def test_a_png_with_megabytes_beside_its_pixels(tmp_path: Path, kind: str) -> None:
    chunks, profile = PngImagePlugin.PngInfo(), os.urandom(1_500_000) if kind == "profile" else None
    if kind == "text":
        chunks.add_text("workflow", "x" * 1_500_000, zip=True)
    path = tmp_path / "comfy.png"
    Image.new("RGB", (64, 64), "red").save(path, pnginfo=chunks, icc_profile=profile)
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    assert read_image(path).getpixel((5, 5)) == (255, 0, 0)
    assert picture_size(path) == (64, 64)
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY), "they are the whole process's"


def wide_profile() -> bytes:
    """A profile of linear light with the colours of sRGB: its middle grey is shown much brighter."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    for place in range(132, 132 + 12 * count, 12):
        tag, begin = bytes(profile[place : place + 4]), int.from_bytes(profile[place + 4 : place + 8], "big")
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            profile[begin : begin + 12] = b"curv" + bytes(8)  # no points: the identity
        if tag == b"desc":
            end = begin + int.from_bytes(profile[place + 8 : place + 12], "big")
            text = bytes(profile[begin:end])
            profile[begin:end] = text.replace("sRGB".encode("utf-16-be"), "LINE".encode("utf-16-be")).replace(b"sRGB", b"LINE")
    return bytes(profile)


@pytest.mark.parametrize(
    ("mode", "ending"), [("RGB", "png"), ("RGB", "jpg"), ("RGB", "webp"), ("RGB", "tif"), ("RGBA", "png"), ("P", "png")]
)
def test_a_colour_profile_is_applied(tmp_path: Path, mode: str, ending: str) -> None:
    path = tmp_path / f"linear.{ending}"
    Image.new("RGB", (64, 64), (100, 100, 100)).convert(mode).save(path, icc_profile=wide_profile())
    red, green, blue = read_image(path).getpixel((9, 9))
    assert 165 <= min(red, green, blue) <= max(red, green, blue) <= 171, "100 / 255 of linear light is 168 in sRGB"


def test_what_shows_through_stays_under_a_profile(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (100, 100, 100, 0))
    image.paste((100, 100, 100, 255), (0, 0, 4, 8))
    image.save(tmp_path / "a.png", icc_profile=wide_profile())
    read = read_colours(tmp_path / "a.png")
    assert read.mode == "RGBA"
    assert read.getchannel("A").getextrema() == (0, 255)
    assert read.getpixel((1, 1))[0] > 160


@pytest.mark.parametrize("profile", [b"damaged", b"\0" * 200, None])
def test_without_a_profile_that_can_be_used_the_colours_stay(tmp_path: Path, profile: bytes | None) -> None:
    Image.new("RGB", (8, 8), (100, 50, 25)).save(tmp_path / "a.png", icc_profile=profile)
    assert read_image(tmp_path / "a.png").getpixel((1, 1)) == (100, 50, 25)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (8, 8), (100, 50, 25)).save(tmp_path / "b.png", icc_profile=srgb)
    assert read_image(tmp_path / "b.png").getpixel((1, 1)) == (100, 50, 25)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(path: Path, image: Image.Image, *chunks: bytes) -> Path:
    """A PNG with further chunks behind its header."""
    data = BytesIO()
    image.save(data, "PNG")
    path.write_bytes(data.getvalue()[:33] + b"".join(chunks) + data.getvalue()[33:])
    return path


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


def chrm(*values: float) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values)))


SRGB_LIGHTS = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
P3_LIGHTS = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


@pytest.mark.parametrize(("chunks", "expected"), [
    ([gama(1.0)], (188, 188, 188)),  # half of the light, as a browser shows it
    ([gama(1 / 2.2)], (128, 128, 128)),
    ([gama(1 / 1.8)], (146, 146, 146)),
    ([gama(1.0), chunk(b"sRGB", b"\0")], (128, 128, 128)),
    ([chrm(*SRGB_LIGHTS)], (128, 128, 128)),
    ([gama(0.0)], (128, 128, 128)),
    ([chrm(*[0.0] * 8)], (128, 128, 128)),
    ([chrm(0.3127, 0.329, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3)], (128, 128, 128)),
    ([chrm(*P3_LIGHTS)], (128, 128, 128)),  # grey has no colour to change
])  # fmt: skip
def test_a_gamma_without_a_profile_is_applied_as_browsers_do(tmp_path: Path, chunks: list[bytes], expected: tuple[int, int, int]) -> None:
    for mode in ("RGB", "L", "P", "RGBA"):
        image = Image.new("L", (8, 8), 128).convert(mode)
        found = read_image(png_with(tmp_path / "a.png", image, *chunks)).getpixel((3, 3))
        assert max(abs(a - b) for a, b in zip(found, expected)) <= 1, mode


def test_lights_of_a_wider_range_become_those_of_srgb(tmp_path: Path) -> None:
    """As the profile of Display P3 would have it, to a rounding."""
    image = Image.new("RGB", (8, 8), (200, 120, 80))
    found = read_image(png_with(tmp_path / "a.png", image, chrm(*P3_LIGHTS))).getpixel((0, 0))
    assert max(abs(a - b) for a, b in zip(found, (215, 117, 71))) <= 2


def test_linear_16_bits_keep_their_dark_parts(tmp_path: Path) -> None:
    steps = np.linspace(0, 2000, 64, dtype=np.uint16).reshape(1, 64).repeat(8, axis=0)
    found = np.asarray(read_image(png_with(tmp_path / "a.png", Image.fromarray(steps), gama(1.0))))[0, :, 0]
    assert len(set(found.tolist())) > 40  # in 8 bits of linear light there were 8
    assert (np.diff(found.astype(int)) >= 0).all()


def test_what_shows_through_stays_under_a_gamma(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (128, 0, 0, 100))
    assert read_colours(png_with(tmp_path / "a.png", image, gama(1.0))).getpixel((0, 0)) == (188, 0, 0, 100)


@pytest.mark.parametrize("second", [(32, 24), (64, 48)])
def test_a_gain_map_leaves_the_picture_for_ordinary_screens(tmp_path: Path, second: tuple[int, int]) -> None:
    """Phones keep a map of what a brighter screen may add as a second picture in the JPEG."""
    base, gain = Image.new("RGB", (64, 48), (200, 90, 30)), Image.new("L", second, 255)
    base.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[gain])
    found = read_image(tmp_path / "phone.jpg")
    assert found.size == (64, 48)
    assert max(abs(a - b) for a, b in zip(found.getpixel((9, 9)), (200, 90, 30))) < 6
    assert read_head(tmp_path / "phone.jpg") == Head((64, 48), moves=False)
    assert read_colours(tmp_path / "phone.jpg", (16, 12)).width < 64
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "phone.jpg").read_bytes()[:-200])  # messengers cut the map off and leave its mark
    assert read_image(tmp_path / "cut.jpg").size == (64, 48)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_an_animation_is_told_by_its_head(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / f"still.{ending}")
    assert read_head(tmp_path / f"a.{ending}") == Head((16, 8), moves=True)
    assert read_head(tmp_path / f"still.{ending}") == Head((16, 8), moves=False)
