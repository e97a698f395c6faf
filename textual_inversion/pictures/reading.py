"""Reads one picture file as 8-bit colours: opened by an explicit list of formats, within limits of pixels, turned upright."""

from __future__ import annotations

import struct
import threading
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.colours import eight_bit_colours, on_colour
from textual_inversion.pictures.folder import mask_file
from textual_inversion.pictures.geometry import Size

#: Largest picture, in pixels: as many as fit twice into a gigabyte. Pillow's own limit is higher, and others may switch it off.
MAX_PIXELS = 120_000_000
#: Largest picture in a format whose decoder holds it several times.
MAX_PIXELS_COPIED = 50_000_000

# An explicit list, because Pillow's others include ones that start programs (EPS) whatever the file's ending says.
# HEIF is read where the program around this package has brought a plugin for it.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "HEIF")
_COPYING_FORMATS = frozenset({"WEBP", "GIF", "AVIF", "HEIF"})
_LARGE = 16_000_000  # pixels from which pictures are read one at a time, whatever the number of threads
_one_at_a_time = threading.Lock()
# What Pillow's decoders were seen to raise on damaged files, beside its own errors.
_READ_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError),
    *(EOFError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)
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
        with _open(path) as image:
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
    file = mask_file(path)
    return read_image(file).convert("L") if file.is_file() else None


def picture_size(path: str | Path, *, upright: bool = True) -> Size:
    """Size of the picture that `read_colours` would give, from the file's header alone.

    Raises:
        DatasetError: as `read_image`, as far as a header shows it.
    """
    path = Path(path)
    try:
        with _open(path) as image:
            stored, turns = image.size, upright
            if image.format == "TIFF":  # some versions of Pillow turn the size already here
                stored, turns = (image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]), True
            turned = turns and _TURNS.get(_orientation(image)) in _QUARTER_TURNS
            return stored[::-1] if turned else stored
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _open(path: Path) -> Image.Image:
    """The file with its header read; the caller closes it."""
    Image.init()
    image = Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN])
    limit = MAX_PIXELS_COPIED if image.format in _COPYING_FORMATS else MAX_PIXELS
    if image.width * image.height > limit:
        image.close()
        raise _TooLargeError(limit)
    return image


def _load(image: Image.Image, *, upright: bool) -> Image.Image:
    """Decode the pixels: RGB, or RGBA where something shows through."""
    image.load()
    colours = eight_bit_colours(image)
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
        return "there is no such file"
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
