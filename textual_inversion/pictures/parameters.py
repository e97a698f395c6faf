"""The text in a picture that says how it was made, where WebUIs write it and look for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from textual_inversion.errors import DatasetError
from textual_inversion.files import open_regular

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

_CHUNK = "parameters"
_USER_COMMENT, _EXIF = 0x9286, 0x8769
_LONGEST = 100_000  # letters


def with_parameters(picture: Image.Image) -> PngInfo:
    """The chunk for `Image.save(pnginfo=…)`; empty where nothing is known of the picture."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    if _CHUNK in picture.info:
        chunks.add_text(_CHUNK, str(picture.info[_CHUNK]))  # as UTF-8 where Latin-1 does not do
    return chunks


def parameters_in(path: Path) -> str:
    """The text that says how the picture in a file was made.

    Raises:
        DatasetError: the file is no picture, or there is no such text in it.
    """
    from PIL import Image

    try:
        with open_regular(path) as file, Image.open(file) as picture:
            text = picture.info.get(_CHUNK) or _comment(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path.name} is no picture that can be read.", path=path) from error
    if not isinstance(text, str) or not text.strip():
        raise DatasetError(f"{path.name} does not say how it was made; programs that edit pictures remove that.", path=path)
    return text[:_LONGEST]


def _comment(picture: Image.Image) -> str:
    """The comment in EXIF, where WebUIs write the text of JPEG and WebP files; empty where there is none."""
    comment = picture.getexif().get_ifd(_EXIF).get(_USER_COMMENT, b"")
    if not isinstance(comment, bytes):
        return str(comment)
    kind, text = comment[:8], comment[8:]
    return text.decode("utf-16-be" if kind.startswith(b"UNICODE") else "utf-8", "replace").strip("\0")
