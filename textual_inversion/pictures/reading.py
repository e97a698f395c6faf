"""Reads one picture file as 8-bit sRGB colours, whatever its mode, profile and size, and lays transparent pictures on a colour.

A file is opened by an explicit list of formats, within limits of pixels, and turned upright.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from textual_inversion.errors import DatasetError
from textual_inversion.files import open_regular, os_error_words
from textual_inversion.pictures.folder import find_mask
from textual_inversion.pictures.gamma import by_gamma
from textual_inversion.pictures.geometry import Size

_BAND_PIXELS = 8_000_000  # converted at a time, so that a large picture is in memory twice at most and not four times


def eight_bit_colours(image: Image.Image) -> Image.Image:
    """RGBA where something shows through, else RGB; greyscale of 16 and 32 bits is scaled to 8. It may be `image` itself."""
    if image.mode[0] in "IF":
        scale = _scale_to_8_bits(image)
        return _by_bands(image, lambda band: Image.fromarray((_values(band) * scale).round().clip(0, 255).astype(np.uint8)).convert("RGB"))
    if not (image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info):
        return image if image.mode == "RGB" else image.convert("RGB")
    colours = image if image.mode == "RGBA" else image.convert("RGBA")
    return colours if colours.getchannel("A").getextrema()[0] < 255 else colours.convert("RGB")


def in_srgb(image: Image.Image) -> Image.Image:
    """The picture with its colour profile applied, as viewers show it: RGB, or RGBA where it has transparency.

    It is `image` itself where it has no profile, that of sRGB, or one that is damaged or made for other channels.
    """
    data = image.info.get("icc_profile")
    if not data and image.format == "PNG":
        return by_gamma(image)
    if not data or image.mode[0] in "IF":
        return image
    try:
        from PIL import ImageCms

        profile = ImageCms.ImageCmsProfile(BytesIO(data))
        mode = _PROFILE_MODES.get(profile.profile.xcolor_space.strip())
        if mode is None or "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        plain, alpha = _channels(image)
        if plain.mode != mode:
            return image
        converted = ImageCms.profileToProfile(plain, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except _PROFILE_ERRORS:
        return image  # a viewer shows such a picture without its profile, too
    if converted is None:
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    converted.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return converted


def _channels(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours of a picture, and what shows through; None where nothing can."""
    if image.mode in ("P", "PA") or "transparency" in image.info:
        has_alpha = image.mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if has_alpha else "RGB")
    if image.mode in ("RGBA", "LA"):
        return image.convert("RGB" if image.mode == "RGBA" else "L"), image.getchannel("A")
    return image, None


def on_colour(image: Image.Image, colour: str) -> Image.Image:
    """RGB of an RGB or RGBA picture, what shows through laid on `colour` (a name, or such as `#ffffff`)."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return _by_bands(image, lambda band: Image.alpha_composite(Image.new("RGBA", band.size, colour), band).convert("RGB"))


def flatten_alpha(image: Image.Image, transparency: str, background: str) -> Image.Image:
    """RGB with transparent parts laid on `background`; with `transparency` = `weight` the picture keeps its alpha, as a loss weight."""
    return image if transparency == "weight" else on_colour(image, background)


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert`, which gives RGB, band by band."""
    if image.width * image.height <= _BAND_PIXELS:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for top, band in _bands(image):
        whole.paste(convert(band), (0, top))
    return whole


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _scale_to_8_bits(image: Image.Image) -> float:
    """Factor that brings deep greyscale to 8 bits; Pillow would clip it at 255 instead of scaling it."""
    peak = max(float(_values(band).max()) for _, band in _bands(image))
    if image.mode == "F":
        return 255.0 if peak <= 1 else 1.0
    return 255 / 65535 if peak <= 65535 else 255 / (2**31 - 1)


def _values(image: Image.Image) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.nan_to_num(np.asarray(image).astype(np.float64))  # h w


#: Largest picture, in pixels: as many as fit twice into a gigabyte. Pillow's own limit is higher, and others may switch it off.
MAX_PIXELS = 120_000_000
#: Largest picture in a format whose decoder holds it several times.
MAX_PIXELS_COPIED = 50_000_000

# An explicit list, because Pillow's others include ones that start programs (EPS) whatever the file's ending says.
# HEIF is read where the program around this package has brought a plugin for it.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "HEIF")
_COPYING_FORMATS = frozenset({"WEBP", "GIF", "AVIF", "HEIF"})
_MOVING_FORMATS = frozenset({"GIF", "WEBP", "PNG", "AVIF"})  # further pictures in a JPEG are gain maps or views, those in a TIFF pages
_LARGE = 16_000_000  # pixels from which pictures are read one at a time, whatever the number of threads
_one_at_a_time = threading.Lock()
_TEXT_BYTES = 32 * 2**20  # of one chunk of text in a PNG, and a quarter of all of them
# What Pillow's decoders were seen to raise on damaged files, beside its own errors.
_READ_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError),
    *(EOFError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colours of a profile -> mode of the pictures that it is for
_PROFILE_ERRORS = (*_READ_ERRORS, ImportError)  # ImportError: a Pillow without littleCMS
_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = frozenset(_TURNS[mark] for mark in (5, 6, 7, 8))


def read_image(path: str | Path) -> Image.Image:
    """Read one picture as 8-bit RGB, upright (EXIF), transparency laid on white, the first frame of an animation.

    Greyscale of 16 bits is scaled to 8. The result carries no metadata.

    Raises:
        DatasetError: one sentence with the file's name and the reason why it cannot be read.
    """
    return on_colour(read_colours(path), "white")


def read_colours(path: str | Path, least: Size | None = None, *, upright: bool = True) -> Image.Image:
    """Read one picture as `read_image` does, but with its transparency: RGBA where something shows through, else RGB.

    Args:
        least: the size that is enough: a JPEG may come out at a half, quarter or eighth of its sides, not below this.
        upright: turn the picture as its EXIF block says; a TIFF is turned in any case.

    Raises:
        DatasetError: as `read_image`.
    """
    path = Path(path)
    try:
        with _LargerTexts(), _open(path) as image:
            if least and image.format in ("JPEG", "MPO"):
                # Its decoder makes a half, quarter or eighth at once, in a fraction of the time and memory.
                lies = upright and _TURNS.get(_orientation(image)) in _QUARTER_TURNS
                image.draft(None, least[::-1] if lies else least)
            with _one_at_a_time if image.width * image.height > _LARGE else nullcontext():
                return _load(image, upright=upright)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def read_mask(path: str | Path) -> Image.Image | None:
    """The mask that lies beside the picture `path`, in greyscale (mode L); None where there is none.

    Raises:
        DatasetError: the mask cannot be read.
    """
    file = find_mask(path)
    return read_image(file).convert("L") if file else None


@dataclass(frozen=True)
class Head:
    """What the header of a picture's file says.

    Attributes:
        size: (width, height) of the picture that `read_colours` would give.
        moves: whether it is an animation, of which the first frame is read.
    """

    size: Size
    moves: bool = False


def picture_size(path: str | Path, *, upright: bool = True) -> Size:
    """Size of the picture that `read_colours` would give, from the file's header alone.

    Raises:
        DatasetError: as `read_image`, as far as a header shows it.
    """
    return read_head(path, upright=upright).size


def read_head(path: str | Path, *, upright: bool = True) -> Head:
    """What the header of a file says; arguments and errors as for `picture_size`."""
    path = Path(path)
    try:
        with _LargerTexts(), _open(path) as image:
            stored, turns = image.size, upright
            if image.format == "TIFF":  # some versions of Pillow turn the size already here
                stored, turns = (image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]), True
            turned = turns and _TURNS.get(_orientation(image)) in _QUARTER_TURNS
            moves = image.format in _MOVING_FORMATS and bool(getattr(image, "is_animated", False))
            return Head(stored[::-1] if turned else stored, moves)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """The file with its header read."""
    Image.init()
    with open_regular(path) as file, Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
        limit = MAX_PIXELS_COPIED if image.format in _COPYING_FORMATS else MAX_PIXELS
        if image.width * image.height > limit:
            raise _TooLargeError(limit)
        yield image


def _load(image: Image.Image, *, upright: bool) -> Image.Image:
    """Decode the pixels: RGB, or RGBA where something shows through."""
    image.load()
    colours = eight_bit_colours(in_srgb(image))
    # Pillow has turned a TIFF by itself, and its older versions keep the mark all the same.
    turn = _TURNS.get(_orientation(image)) if upright and image.format != "TIFF" else None
    turned = colours.transpose(turn) if turn is not None else colours
    # A colour profile or an EXIF block of the original would be wrong for these pixels when they are saved.
    turned.info = {}
    return turned.copy() if turned is image else turned


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except _READ_ERRORS:
        return 1  # the pixels are good although the EXIF block is damaged


class _LargerTexts:
    """Inside, Pillow reads PNGs with megabytes of text, such as a workflow or a colour profile; by itself it calls those damaged.

    The limits are the whole process's, so that they are raised only while a picture is read here; several threads may read at once.
    """

    _lock, _readers, _before = threading.Lock(), 0, (0, 0)

    def __enter__(self) -> None:
        kind = _LargerTexts
        with kind._lock:
            if not kind._readers:
                kind._before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
                PngImagePlugin.MAX_TEXT_CHUNK = max(kind._before[0], _TEXT_BYTES)
                PngImagePlugin.MAX_TEXT_MEMORY = max(kind._before[1], 4 * _TEXT_BYTES)
            kind._readers += 1

    def __exit__(self, *_: object) -> None:
        kind = _LargerTexts
        with kind._lock:
            kind._readers -= 1
            if not kind._readers:
                PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = kind._before


class _TooLargeError(Image.DecompressionBombError):
    """The argument is the largest number of pixels that is read."""


def _unreadable(path: Path, error: BaseException) -> DatasetError:
    return DatasetError(f"{path.name} cannot be read: {_reason(path, error)}; replace it or take it out of the folder.", path=path)


def _reason(path: Path, error: BaseException) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        most = error.args[0] if isinstance(error, _TooLargeError) else MAX_PIXELS
        return f"it has more than {most // 10**6} million pixels"
    if isinstance(error, MemoryError):
        return "there is not enough memory for its size"
    if not path.is_file():
        return os_error_words(error) if isinstance(error, OSError) and path.exists() else "there is no such file"
    if isinstance(error, PermissionError):
        return "its permissions do not allow it"
    if path.stat().st_size == 0:
        return "it is empty (0 bytes)"
    if path.suffix.lower() == ".avif" and "AVIF" not in Image.OPEN:
        return "the installed Pillow does not read AVIF (save it as PNG)"
    if path.suffix.lower() in (".heic", ".heif") and "HEIF" not in Image.OPEN:
        return "HEIC is not read here (save it as JPEG or PNG, which is what phones send with “Most Compatible” on)"
    if isinstance(error, UnidentifiedImageError):
        return "its contents are not a PNG, JPEG, WebP, BMP, TIFF, GIF or AVIF picture"
    return "its data are damaged or cut short"
