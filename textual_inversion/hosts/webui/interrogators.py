"""The WebUI's own ways to describe a picture, BLIP and Deepbooru, as captioners. Knows nothing of captions or data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from textual_inversion.errors import DatasetError
from textual_inversion.hosts.webui.running import queue_turn

if TYPE_CHECKING:
    from PIL import Image

_FAILED = "<error>"  # what A1111's interrogator adds to its text, instead of raising


def interrogators() -> Mapping[str, Callable[[Image.Image], str]]:
    """Name -> function of an RGB picture; it waits for its turn in the WebUI's queue, and loads its model when it is called first.

    Raises (from the functions):
        DatasetError: the WebUI could not describe the picture.
    """
    return {"interrogate (WebUI)": _in_turn(_interrogate), "deepbooru (WebUI)": _in_turn(_deepbooru)}


def _in_turn(describe: Callable[[Image.Image], str]) -> Callable[[Image.Image], str]:
    def described(image: Image.Image) -> str:
        with queue_turn():
            try:
                return describe(image)
            except DatasetError:
                raise
            except Exception as error:
                raise DatasetError(
                    f"The WebUI could not describe it ({type(error).__name__}: {error}); its console may say more."
                ) from error

    return described


def _interrogate(image: Image.Image) -> str:
    from modules import shared

    said = str(shared.interrogator.interrogate(image.convert("RGB")))
    if said.endswith(_FAILED):
        raise DatasetError("The WebUI could not describe it; its console says why, as where it cannot download its model.")
    return said


def _deepbooru(image: Image.Image) -> str:
    from modules import deepbooru

    return str(deepbooru.model.tag(image.convert("RGB")))
