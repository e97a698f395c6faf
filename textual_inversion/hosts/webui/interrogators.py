"""The WebUI's own ways to describe a picture, BLIP and Deepbooru, as captioners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from textual_inversion.app.job import StoppedWaitingError
from textual_inversion.errors import DatasetError
from textual_inversion.hosts.webui.turn import queue_turn

if TYPE_CHECKING:
    from PIL import Image

    from textual_inversion.app.job import Listener, ShouldStop

_FAILED = "<error>"  # what A1111's interrogator adds to its text, instead of raising


def interrogators(listener: Listener, should_stop: ShouldStop) -> Mapping[str, Callable[[Image.Image], str]]:
    """Name -> function of an RGB picture; it waits for its turn in the WebUI's queue, and loads its model when it is called first.

    Raises (from the functions):
        DatasetError: the WebUI could not describe the picture, or the wait for it was stopped.
    """

    def in_turn(describe: Callable[[Image.Image], str]) -> Callable[[Image.Image], str]:
        def described(image: Image.Image) -> str:
            try:
                with queue_turn(listener, should_stop):
                    return describe(image)
            except StoppedWaitingError:
                raise DatasetError("Stopped before the WebUI could describe it.") from None
            except DatasetError:
                raise
            except Exception as error:
                raise DatasetError(
                    f"The WebUI could not describe it ({type(error).__name__}: {error}); its console may say more."
                ) from error

        return described

    return {"interrogate (WebUI)": in_turn(_interrogate), "deepbooru (WebUI)": in_turn(_deepbooru)}


def _interrogate(image: Image.Image) -> str:
    from modules import shared

    description = str(shared.interrogator.interrogate(image.convert("RGB"))).removesuffix(_FAILED).strip(", ")
    if not description:
        raise DatasetError("The WebUI could not describe it; its console says why, as where it cannot download its model.")
    return description


def _deepbooru(image: Image.Image) -> str:
    from modules import deepbooru

    deepbooru.model.start()
    try:
        return str(deepbooru.model.tag_multi(image.convert("RGB"), force_disable_ranks=True))
    finally:
        deepbooru.model.stop()
