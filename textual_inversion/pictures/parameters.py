"""The text in a picture's PNG that says how it was made, where WebUIs look for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

_CHUNK = "parameters"


def with_parameters(picture: Image.Image) -> PngInfo:
    """The chunk for `Image.save(pnginfo=…)`; empty where nothing is known of the picture."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    if _CHUNK in picture.info:
        chunks.add_text(_CHUNK, str(picture.info[_CHUNK]))  # as UTF-8 where Latin-1 does not do
    return chunks
