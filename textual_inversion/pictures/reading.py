"""Finds picture files and turns them into RGB pixels. Knows nothing of captions, latents or training."""

from __future__ import annotations

import os
import re
import struct
import threading
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.colours import eight_bit_colours, on_colour
from textual_inversion.text import counted

#: File name endings that count as pictures. AVIF and HEIC are listed even where Pillow cannot read them, so that such files are
#: named, not ignored.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"})
#: Largest picture, in pixels: as many as fit twice into a gigabyte. Pillow's own limit is higher, and others may switch it off.
MAX_PIXELS = 120_000_000
#: Largest picture in a format whose decoder holds it several times.
MAX_PIXELS_COPIED = 50_000_000
#: What ends the name of the picture that says where `cat.png` is looked at: `cat-mask.png`.
MASK_ENDING = "-mask.png"

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


def find_images(folder: str | Path) -> list[Path]:
    """Picture files directly inside `folder`, in natural order (`2.png` before `10.png`).

    Hidden files are left out, and `cat-mask.png` where there is a picture `cat` that it belongs to.

    Returns:
        Paths, possibly none. Whether they can be read is `read_image`'s business.

    Raises:
        DatasetError: no such folder, or it cannot be listed.
    """
    path = _existing_folder(folder)
    try:
        found = [entry for entry in path.iterdir() if _is_picture(entry)]
    except OSError as error:
        raise DatasetError(f"The folder {path} cannot be listed ({error.strerror or error}); check its permissions.") from error
    names = {entry.stem.casefold() for entry in found}
    return sorted((entry for entry in found if not _is_mask(entry, names)), key=_natural_key)


def require_images(folder: str | Path) -> list[Path]:
    """As `find_images`, for whoever needs at least one.

    Raises:
        DatasetError: as `find_images`, or a folder without pictures; the sentence says what is in it instead.
    """
    if found := find_images(folder):
        return found
    path = Path(folder).expanduser()
    visible = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    folders = sum(entry.is_dir() for entry in visible)
    contents = (
        f"{counted(len(visible) - folders, 'other file')} and {counted(folders, 'subfolder')}, not searched" if visible else "it is empty"
    )
    raise DatasetError(f"The folder {path} has no pictures ({contents}); put PNG, JPEG, WebP, BMP, TIFF, GIF or AVIF files into it.")


def read_image(path: str | Path) -> Image.Image:
    """Read one picture as 8-bit RGB, upright (EXIF), transparency laid on white, the first frame of an animation.

    Greyscale of 16 bits is scaled to 8. The result carries no metadata.

    Raises:
        DatasetError: one sentence with the file's name and why it cannot be read.
    """
    return on_colour(read_colours(path), "white")


def read_colours(path: str | Path, least: tuple[int, int] | None = None, *, upright: bool = True) -> Image.Image:
    """Read one picture as `read_image` does, but with its transparency: RGBA where something shows through, else RGB.

    Args:
        least: (width, height) that will do: a JPEG may come out at a half, quarter or eighth of its sides, not below this.
        upright: turn it as its EXIF block says; a TIFF is turned in any case.

    Raises:
        DatasetError: as `read_image`.
    """
    path = Path(path)
    try:
        return _decode(path, least, upright=upright)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def picture_size(path: str | Path, *, upright: bool = True) -> tuple[int, int]:
    """(width, height) in pixels of the picture that `read_colours` would give, from the file's header alone.

    Raises:
        DatasetError: as `read_image`, as far as a header shows it.
    """
    path = Path(path)
    try:
        with _opened(path) as image:
            stored, turns = image.size, upright
            if image.format == "TIFF":  # some Pillows turn the size already here
                stored, turns = (image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]), True
            turned = turns and _TURNS.get(_orientation(image)) in _QUARTER_TURNS
            return stored[::-1] if turned else stored
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize (Lanczos) so that `image` covers `width` x `height` pixels, keeping its aspect, and crop the centre to that size."""
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def mask_file(path: str | Path) -> Path:
    """Where the mask of the picture `path` would lie; it need not exist."""
    path = Path(path)
    return path.with_name(path.stem + MASK_ENDING)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Pixels of an RGB picture as uint8 [3, height, width], 0 to 255, on the CPU."""
    pixels = np.array(image.convert("RGB"), dtype=np.uint8)  # h w 3
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _unreadable(path: Path, error: BaseException) -> DatasetError:
    return DatasetError(f"{path.name} cannot be read: {_reason(path, error)}; replace it or take it out of the folder.")


def _existing_folder(folder: str | Path) -> Path:
    if not str(folder).strip():
        raise DatasetError("No folder of pictures is given; name one.")
    path = Path(folder).expanduser()
    if os.path.isdir(path):  # not Path.is_dir, which raises where a parent may not be entered
        return path
    found = "is a file, not a folder" if os.path.exists(path) else "does not exist"
    raise DatasetError(f"The folder of pictures {path} {found}; choose a folder with pictures in it.")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _is_mask(path: Path, names: set[str]) -> bool:
    name = path.name.casefold()
    return name.endswith(MASK_ENDING) and name[: -len(MASK_ENDING)] in names


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


def _decode(path: Path, least: tuple[int, int] | None = None, *, upright: bool = True) -> Image.Image:
    """Pixels as RGB, or RGBA where something shows through."""
    with _opened(path) as image:
        if least and image.format in ("JPEG", "MPO"):
            # Its decoder makes a half, quarter or eighth at once, in a fraction of the time and memory.
            lies = upright and _TURNS.get(_orientation(image)) in _QUARTER_TURNS
            image.draft(None, least[::-1] if lies else least)
        with _one_at_a_time if image.width * image.height > _LARGE else nullcontext():
            return _loaded(image, upright=upright)


def _loaded(image: Image.Image, *, upright: bool) -> Image.Image:
    image.load()
    colours = eight_bit_colours(image)
    # Pillow has turned a TIFF by itself, and its older versions keep the mark all the same.
    turn = _TURNS.get(_orientation(image)) if upright and image.format != "TIFF" else None
    turned = colours.transpose(turn) if turn is not None else colours
    # A colour profile or an EXIF block of the original would be wrong for these pixels when they are saved.
    turned.info = {}
    return turned.copy() if turned is image else turned


def _opened(path: Path) -> Image.Image:
    """The file with its header read; the caller closes it."""
    Image.init()
    image = Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN])
    copied = image.format in _COPYING_FORMATS
    if image.width * image.height > (MAX_PIXELS_COPIED if copied else MAX_PIXELS):
        image.close()
        raise _TooLargeError(MAX_PIXELS_COPIED if copied else MAX_PIXELS)
    return image


class _TooLargeError(Image.DecompressionBombError):
    """The argument is the number of pixels that would have been read."""


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except _READ_ERRORS:
        return 1  # a damaged EXIF block says nothing of the pixels, which are good


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
