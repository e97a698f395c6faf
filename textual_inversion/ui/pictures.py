"""The pictures of a data set on the page: thumbnails of a folder, and files that the user drops onto the page."""

from __future__ import annotations

import base64
import io
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from textual_inversion.app.job import user_message
from textual_inversion.errors import DatasetError, TextualInversionError
from textual_inversion.files import read_regular
from textual_inversion.ui import compat, render

SHOWN = 7
THUMBNAIL = 96  # pixels: twice the displayed size, for high-resolution screens
MAX_FILES = 500
MAX_BYTES = 64 * 2**20
MAX_CAPTION_BYTES = 64 * 2**10


@dataclass(frozen=True)
class FolderPictures:
    """The content of a folder of pictures.

    Attributes:
        thumbnails: data URLs of the first readable pictures.
        total: how many pictures there are; 0 where no folder was named.
        captioned: how many of them have a caption file.
        problem: why the folder cannot be used; empty when it can.
    """

    thumbnails: Sequence[str] = ()
    total: int = 0
    captioned: int = 0
    problem: str = ""

    def html(self) -> str:
        """The strip under the folder's field."""
        if self.problem:
            return render.note(self.problem, "error")
        if not self.total:
            return render.note("Name a folder of pictures, or drop some below.", "hint")
        return render.strip(self.thumbnails, self.total, self.captioned)


def pictures_in(folder: str) -> FolderPictures:
    """Look into `folder`; raises nothing, `problem` says what is wrong."""
    from textual_inversion.pictures.folder import require_images, written_caption

    if not folder:
        return FolderPictures()
    try:
        paths = require_images(Path(folder).expanduser())
        captioned = sum(written_caption(path) is not None for path in paths)
        thumbnails = [_thumbnail(str(path), path.stat().st_mtime_ns) for path in paths[:SHOWN]]
    except (TextualInversionError, OSError) as error:
        return FolderPictures(problem=user_message(error))
    return FolderPictures([source for source in thumbnails if source], len(paths), captioned)


@lru_cache(maxsize=256)
def _thumbnail(path: str, _modified: int) -> str:
    """A data URL of the picture's centre; empty when the picture cannot be read (training reports the reason)."""
    from textual_inversion.pictures.geometry import cover
    from textual_inversion.pictures.reading import read_image

    try:
        small = cover(read_image(path), (THUMBNAIL, THUMBNAIL))
    except DatasetError:
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def drop(files: Any, parent: Path, field: str) -> tuple[str, Any]:
    """Keep files that the user dropped onto the page.

    Args:
        files: the value of the File component.
        parent: the pictures get a new folder below this folder.
        field: label of the field that shows the new folder, for the note.

    Returns:
        The note under the drop field, and the update of the folder's field.
    """
    paths = compat.uploaded_paths(files)
    if not paths:
        return "", compat.update()
    try:
        folder, left_out = keep_uploads(paths, parent)
    except (TextualInversionError, OSError) as error:
        return render.note(user_message(error), "error"), compat.update()
    return render.note(left_out or f"Copied; the {field} points there.", "hint"), compat.update(value=str(folder))


def keep_uploads(files: Sequence[str], parent: Path) -> tuple[Path, str]:
    """Copy dropped pictures and captions into a new folder under `parent`; returns the folder, and one sentence about files left out.

    Raises:
        DatasetError: no picture among the files, or too many files.
    """
    if len(files) > MAX_FILES:
        raise DatasetError(f"{len(files)} files were dropped; {MAX_FILES} at a time are the most.")
    paths = [Path(file) for file in files]
    good = [path for path in paths if _usable(path)]
    refused = [_safe_name(path.name) for path in paths if path not in good]
    if all(_is_caption(path) for path in good):
        raise DatasetError("None of the files is a picture that can be read; drop .png, .jpg or .webp files.")
    folder = _new_folder(parent)
    for path in good:
        target = folder / _safe_name(path.name)
        if target.exists():
            target = folder / f"{len(list(folder.iterdir()))}-{target.name}"
        shutil.copyfile(path, target)
    return folder, f"Left out, for they cannot be read or have over {MAX_BYTES >> 20} MB: {', '.join(refused)}." if refused else ""


def _is_caption(path: Path) -> bool:
    return path.suffix.lower() == ".txt"


def _usable(path: Path) -> bool:
    from textual_inversion.pictures.folder import SUFFIXES
    from textual_inversion.pictures.reading import read_image

    if not path.is_file() or path.stat().st_size > (MAX_CAPTION_BYTES if _is_caption(path) else MAX_BYTES):
        return False
    try:
        if _is_caption(path):
            read_regular(path, MAX_CAPTION_BYTES).decode("utf-8")
            return True
        if path.suffix.lower() in SUFFIXES:
            read_image(path)  # as training reads it, so that nothing is left out later
            return True
    except (DatasetError, UnicodeDecodeError):
        return False
    return False


def _safe_name(name: str) -> str:
    cleaned = re.sub(r"[^\w.\- ]", "_", name).lstrip(". ")[-120:]
    return cleaned or "picture.png"


def _new_folder(parent: Path) -> Path:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in range(100):
        folder = parent / (stamp if not number else f"{stamp}-{number}")
        if not folder.exists():
            folder.mkdir(parents=True)
            return folder
    raise DatasetError(f"No new folder could be made in {parent}; wait a second and drop the pictures again.")
