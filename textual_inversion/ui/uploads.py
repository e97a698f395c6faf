"""Refuses events whose data names a file that was not uploaded, before gradio copies or opens that file. The same in every gradio.

gradio checks such paths for programs that it launches itself, not for pages that are mounted into a program, and its version 3 never.
"""

from __future__ import annotations

import inspect
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gradio as gr

REFUSED = "Only files that were uploaded on this page can be used."
_FILE_DATA = {"_type": "gradio.FileData"}


def guard_events(blocks: Any, concerns: Callable[[Any], bool] = lambda component: True) -> None:
    """Check the data of every event of `blocks` before gradio looks at them.

    Args:
        blocks: the whole page's Blocks.
        concerns: which components are ours. Events without such a component among their inputs are not checked, because they belong to
            the program that hosts our tab.
    """
    original = blocks.preprocess_data
    if inspect.iscoroutinefunction(original):

        async def later(block_fn: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            _check(block_fn.inputs, inputs, concerns, _is_upload)
            return await original(block_fn, inputs, *rest, **more)

        blocks.preprocess_data = later
        return

    def first(fn_index: int, inputs: Any, *rest: Any, **more: Any) -> Any:
        components = [blocks.blocks.get(number) for number in blocks.dependencies[fn_index]["inputs"]]
        _check(components, inputs, concerns, _is_upload_of_gradio_3)
        return original(fn_index, inputs, *rest, **more)

    blocks.preprocess_data = first


def of_our_tab(component: Any) -> bool:
    """Whether a component belongs to this project, which gives each of its components an id that starts with `ti_`."""
    return str(getattr(component, "elem_id", None) or "").startswith("ti_")


def upload_folder() -> Path:
    """Where gradio keeps uploaded files and the pictures that it shows, with symbolic links resolved."""
    return Path(os.path.realpath(os.environ.get("GRADIO_TEMP_DIR") or os.path.join(tempfile.gettempdir(), "gradio")))


def is_uploaded(path: Any) -> bool:
    """Whether `path` is the absolute path of a regular file in gradio's upload folder; links are resolved, devices are not opened."""
    if not isinstance(path, str) or not os.path.isabs(path):
        return False
    try:
        real = os.path.realpath(path)
        return upload_folder() in Path(real).parents and stat.S_ISREG(os.stat(real).st_mode)
    except (OSError, ValueError):  # not there; a path with a null character
        return False


def _check(components: Iterable[Any], inputs: Any, concerns: Callable[[Any], bool], accepts: Callable[[Any], bool]) -> None:
    components = list(components)
    if not any(concerns(component) for component in components):
        return
    for component, value in zip(components, inputs or []):
        # A dictionary can be a file in every component, whatever its kind, because gradio looks for files before the component does.
        files = _files(value) if isinstance(component, gr.File) else [value] if _has_dictionary(value) else []
        if not all(accepts(file) for file in files) or (files and not isinstance(component, gr.File)):
            raise gr.Error(REFUSED)


def _files(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _has_dictionary(value: Any) -> bool:
    """Whether there is a dictionary anywhere in a value that came as JSON."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            return True
        if isinstance(item, (list, tuple)):
            waiting.extend(item)
    return False


def _is_upload(file: Any) -> bool:
    """An item of gradio 4 and later: its path is an upload, and no other file is hidden deeper in it."""
    if not isinstance(file, dict) or file.get("meta", _FILE_DATA) != _FILE_DATA:
        return False
    flat = not any(isinstance(value, (dict, list)) for key, value in file.items() if key != "meta")
    return flat and is_uploaded(file.get("path"))


def _is_upload_of_gradio_3(file: Any) -> bool:
    """An item of gradio 3: the name of an upload, or the file itself as a data URL."""
    if not isinstance(file, dict) or any(isinstance(value, (dict, list)) for value in file.values()):
        return False
    if file.get("is_file"):
        return is_uploaded(file.get("name"))
    return isinstance(file.get("name"), str) and str(file.get("data")).startswith("data:")
