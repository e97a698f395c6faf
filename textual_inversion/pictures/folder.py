"""The picture files of a folder, in the order in which people count them, with their masks and captions."""

from __future__ import annotations

import codecs
import os
import re
from contextlib import suppress
from pathlib import Path

from textual_inversion.errors import DatasetError
from textual_inversion.files import os_error_words, read_regular
from textual_inversion.text import counted

MOST_CAPTION_BYTES = 64 * 2**10  # a prompt of that size already takes hundreds of chunks of tokens

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


# Numbering such as `00012-0-` orders pictures and does not describe them; the digit of `1girl` and `3d` belongs to the word.
_NUMBERING = re.compile(r"^(?:\d*[-_\s]+)*(?:\d+$)?")


def caption_file(path: str | Path) -> Path:
    """Where the caption of the picture `path` would lie: the same name with the ending `.txt`; it need not exist."""
    return Path(path).with_suffix(".txt")


def caption_for(path: str | Path, word_regex: str = "", join: str = " ") -> str:
    """Caption of the picture `path`, on one line: from its caption file, even an empty one, or else from its file name.

    Args:
        word_regex: which parts of a file name are words, as in `caption_in_name`.
        join: what stands between those words.

    Raises:
        DatasetError: the caption file is there and cannot be read.
        re.error: `word_regex` is not a pattern; settings are checked for that before.
    """
    written = written_caption(path)
    return caption_in_name(path, word_regex, join) if written is None else written


def written_caption(path: str | Path) -> str | None:
    """Text of the caption file of the picture `path`, on one line; None when there is no such file.

    The file is UTF-8, UTF-16, or else Windows-1252.

    Raises:
        DatasetError: the file cannot be read.
    """
    file = caption_file(path)
    if not file.is_file():
        return None
    data = caption_bytes(file)
    return " ".join(_decoded(data).split())


def _decoded(data: bytes) -> str:
    """The text of a caption file in the first of the encodings that fits."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        first, second = "utf-16", "utf-16"
    elif data[1::2].count(0) > len(data) // 4:  # UTF-16 without its mark: every second byte of most letters is 0
        first, second = "utf-16-le", "utf-8-sig"
    elif data[::2].count(0) > len(data) // 4:
        first, second = "utf-16-be", "utf-8-sig"
    else:
        data = data.replace(b"\0", b"")
        first, second = "utf-8-sig", "cp1252"
    for encoding in (first, second):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding)
    return data.decode("latin-1")  # which gives every byte a letter


def caption_in_name(path: str | Path, word_regex: str = "", join: str = " ") -> str:
    """Words of the file name of the picture `path`, without its ending and without the numbering at its beginning.

    Args:
        word_regex: which parts of the name are words; with a group in it, the group is the word. Empty = the whole name.
        join: what stands between those words.
    """
    name = _NUMBERING.sub("", Path(path).stem)
    if word_regex:
        name = join.join(match[1] or "" if match.re.groups else match[0] for match in re.finditer(word_regex, name))
    return " ".join(name.split())


def caption_bytes(file: Path) -> bytes:
    """Contents of a caption file.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        return read_regular(file, MOST_CAPTION_BYTES)
    except OSError as error:
        sentence = f"The caption {file.name} cannot be read ({os_error_words(error)}); mend it or take it away."
        raise DatasetError(sentence, path=file) from error
