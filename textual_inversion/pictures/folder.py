"""The picture files of a folder, in the order in which people count them, and the names of the masks that belong to them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from textual_inversion.errors import DatasetError
from textual_inversion.files import os_error_words
from textual_inversion.text import counted

#: File name endings that count as pictures. AVIF and HEIC are listed even where Pillow cannot read them, so that such files are
#: named, not ignored.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"})
#: Ending of a mask's name: `cat-mask.png` says which parts of `cat.png` count.
MASK_ENDING = "-mask.png"


def find_images(folder: str | Path) -> list[Path]:
    """Picture files directly inside `folder`, in natural order (`2.png` before `10.png`).

    Hidden files are left out, and so is `cat-mask.png` where there is a picture `cat`.

    Returns:
        Paths, possibly none; the files are not opened.

    Raises:
        DatasetError: no such folder, or it cannot be listed.
    """
    path = _existing_folder(folder)
    try:
        files = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()]
    except OSError as error:
        raise DatasetError(f"The folder {path} cannot be listed ({os_error_words(error)}); check its permissions.", path=path) from error
    masks = {(file.stem + MASK_ENDING).casefold() for file in files}
    return sorted((file for file in files if file.name.casefold() not in masks), key=natural_key)


def require_images(folder: str | Path) -> list[Path]:
    """The same as `find_images`, but at least one.

    Raises:
        DatasetError: as `find_images`, or a folder without pictures; the sentence says what is in it instead.
    """
    if images := find_images(folder):
        return images
    path = Path(folder).expanduser()
    visible = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    folders = sum(entry.is_dir() for entry in visible)
    contents = (
        f"{counted(len(visible) - folders, 'other file')} and {counted(folders, 'subfolder')}, not searched" if visible else "it is empty"
    )
    sentence = f"The folder {path} has no pictures ({contents}); put PNG, JPEG, WebP, BMP, TIFF, GIF or AVIF files into it."
    raise DatasetError(sentence, path=path)


def mask_file(path: str | Path) -> Path:
    """Where the mask of the picture `path` would lie; it need not exist."""
    path = Path(path)
    return path.with_name(path.stem + MASK_ENDING)


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sorts file names as people do: numbers by their value, letters whatever their case."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


def _existing_folder(folder: str | Path) -> Path:
    if not str(folder).strip():
        raise DatasetError("No folder of pictures is given; name one.")
    path = Path(folder).expanduser()
    if os.path.isdir(path):  # not Path.is_dir, which raises where a parent may not be entered
        return path
    fault = "is a file, not a folder" if os.path.exists(path) else "does not exist"
    raise DatasetError(f"The folder of pictures {path} {fault}; choose a folder with pictures in it.", path=path)
