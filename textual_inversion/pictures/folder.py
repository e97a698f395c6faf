"""The picture files of a folder, in the order in which people count them, with their masks and captions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from textual_inversion.errors import DatasetError
from textual_inversion.files import os_error_words
from textual_inversion.pictures.captions import Caption, companion_names, written
from textual_inversion.pictures.listing import file_in, fold
from textual_inversion.text import counted

#: File name endings that count as pictures. AVIF and HEIC are listed even where Pillow cannot read them, so that such files are
#: named, not ignored.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"})
#: Ending of the name of a mask that is written here: `cat-mask.png` says which parts of `cat.png` count.
MASK_ENDING = "-mask.png"
#: Ends of the names of masks, without `.png`, here and in OneTrainer, in other tools.
MASK_MARKS = ("-mask", "-masklabel", "_mask", ".mask")
#: Ends of the names of conditioning pictures, which this training does not use.
CONDITION_MARKS = ("-condlabel", "_condlabel")
#: Folders whose masks carry the names of the pictures beside them.
MASK_FOLDERS = ("mask", "masks")
_MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SOURCE_MARK = ".src"  # `0.src.jpg` has the mask `0.mask.png`


def find_images(folder: str | Path) -> list[Path]:
    """Picture files directly inside `folder`, in natural order (`2.png` before `10.png`).

    Hidden files are left out, and so are the masks and conditioning pictures of others, such as `cat-mask.png` beside a picture `cat`.

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
    companions = companions_of(files)
    return sorted((file for file in files if file not in companions), key=natural_key)


def companions_of(files: Iterable[Path]) -> dict[Path, str]:
    """The files of one folder that are no pictures to learn but belong to another one -> `mask` or `conditioning picture`."""
    files = list(files)
    stems = {fold(file.stem) for file in files}
    stems |= {stem.removesuffix(_SOURCE_MARK) for stem in stems}
    named = companion_names(files[0].parent) if files else frozenset()
    found = {}
    for file in files:
        stem = fold(file.stem)
        for kind, marks in (("mask", MASK_MARKS), ("conditioning picture", CONDITION_MARKS)):
            if any(stem.endswith(mark) and stem.removesuffix(mark) in stems for mark in marks):
                found[file] = kind
        if file not in found and fold(file.name) in named:
            found[file] = "conditioning picture"
    return found


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
    if tables := [entry.name for entry in visible if entry.suffix.lower() in (".parquet", ".arrow")]:
        advice = "save the pictures as files, with their captions in metadata.jsonl"
        raise DatasetError(f"The pictures of {path} are inside {tables[0]}, a kind of table that is not read here; {advice}.", path=path)
    sentence = f"The folder {path} has no pictures ({contents}); put PNG, JPEG, WebP, BMP, TIFF, GIF or AVIF files into it."
    raise DatasetError(sentence, path=path)


def mask_file(path: str | Path) -> Path:
    """Where the mask of the picture `path` is written; it need not exist."""
    path = Path(path)
    return path.with_name(path.stem + MASK_ENDING)


def find_mask(path: str | Path) -> Path | None:
    """The mask of the picture `path`, under any of the names that tools give it, or under its own name in a folder `masks`; None = none."""
    path = Path(path)
    stems = dict.fromkeys((path.stem, path.stem.removesuffix(_SOURCE_MARK)))
    beside = [stem + mark + suffix for stem in stems for mark in MASK_MARKS for suffix in _MASK_SUFFIXES]
    if mask := file_in(path.parent, *beside):
        return mask if mask != path else None
    inside = [path.name, *(path.stem + suffix for suffix in _MASK_SUFFIXES)]
    return next((mask for folder in MASK_FOLDERS if (mask := file_in(path.parent / folder, *inside))), None)


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
_COUNTER = re.compile(r"_\d+$")  # of pictures with the same words, such as `a cat on a boat_02`
# What cameras, phones, messengers, browsers and programs call pictures: a fixed beginning, and then numbers, dates or marks only.
_DEVICE = (
    r"_?img(?:_e)?|_?mg|mvimg|imag|dsc[nf_]?|_dsc|pict?|p|pxl|cimg|dscpdc|gopr|dji|vid|mov|scan|images?|bild|foto|photo(?: on)?|picture|"
    r"untitled|unbenannt|unnamed|unknown|download|screenshot|screen[ _-]?shot|bildschirmfoto|capture|snapshot|frame|fb_img|received|"
    r"mmexport|signal|whatsapp[ _-]?image|comfyui|output|thumb|wp|wechatimg|"
    r"微信图片|微信截图|屏幕截图|スクリーンショット|снимок экрана|изображение"
)
_FILLING = r"at|um|wa|pm|am|edited|bearbeitet|copy|kopie|burst|cover|portrait|hdr|pano|mp"
_CAMERA = re.compile(rf"(?:{_DEVICE})(?:[\W\d_]|(?<![^\W\d_])(?:{_FILLING})(?![^\W\d_]))*", re.IGNORECASE)
_HASH = re.compile(r"(?=.*\d)[0-9a-f]{16,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def caption_file(path: str | Path) -> Path:
    """Where the caption of the picture `path` is written: the same name with the ending `.txt`; it need not exist."""
    return Path(path).with_suffix(".txt")


def caption_for(path: str | Path, word_regex: str = "", join: str = " ") -> str:
    """Caption of the picture `path`, on one line: a written one, even an empty one, or else from its file name.

    Args:
        word_regex: which parts of a file name are words, as in `caption_in_name`.
        join: what stands between those words.

    Raises:
        DatasetError: the caption file is there and cannot be read.
        re.error: `word_regex` is not a pattern; settings are checked for that before.
    """
    found = written(Path(path))
    return caption_in_name(path, word_regex, join) if found is None else found.text


def written_caption(path: str | Path) -> str | None:
    """The caption that is written for the picture `path`, on one line; None where there is none. See `textual_inversion.pictures.captions`.

    Raises:
        DatasetError: its file cannot be read.
    """
    found: Caption | None = written(Path(path))
    return None if found is None else found.text


def caption_in_name(path: str | Path, word_regex: str = "", join: str = " ") -> str:
    """Words of the file name of the picture `path`, without its ending and without its numbering; empty for `is_device_name`.

    Args:
        word_regex: which parts of the name are words; with a group in it, the group is the word. Empty = the whole name.
        join: what stands between those words.
    """
    name = _NUMBERING.sub("", Path(path).stem)
    if word_regex:
        name = join.join(match[1] or "" if match.re.groups else match[0] for match in re.finditer(word_regex, name))
    elif is_device_name(name):
        return ""
    elif " " in name:
        name = _COUNTER.sub("", name)
    return " ".join(name.split())


def is_device_name(stem: str) -> bool:
    """Whether a file name was given by a device or a program, such as `IMG_20230101_123451`, and describes nothing."""
    return bool(_HASH.fullmatch(stem) or (any(letter.isdigit() for letter in stem) and _CAMERA.fullmatch(stem)))
