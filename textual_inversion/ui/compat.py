"""Handles the differences between gradio 3.41.2, 4.40.0, 5 and 6."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import gradio as gr

#: gradio 6 takes style, head and theme when the app is mounted; older versions take them when the Blocks are created.
STYLE_AT_MOUNT = "head" in inspect.signature(gr.Blocks.launch).parameters


def on(
    trigger: Callable[..., Any],
    handler: Callable[..., Any] | None,
    inputs: Iterable[Any] = (),
    outputs: Iterable[Any] = (),
    *,
    queue: bool = True,
) -> Any:
    """Connect `trigger` (such as `button.click`) to `handler` without gradio's overlay."""
    return trigger(handler, list(inputs), list(outputs), api_name=False, show_progress="hidden", queue=queue)


def update(**changes: Any) -> Any:
    """A change of a component's properties, as a handler returns it."""
    return gr.update(**changes)


def known(component: Any, **keywords: Any) -> dict[str, Any]:
    """The `keywords` that `component` accepts in this version of gradio. Others are dropped, so use this for styling only."""
    parameters = inspect.signature(component.__init__).parameters
    return {key: value for key, value in keywords.items() if key in parameters}


def uploaded_paths(files: Any) -> list[str]:
    """Local paths from the value of a File component: None, one item or a list; items are wrappers in gradio 3, paths later."""
    if not files:
        return []
    listed = files if isinstance(files, (list, tuple)) else [files]
    return [str(getattr(file, "name", file)) for file in listed]


def saved_as_ours(component: Any) -> Any:
    """Let a WebUI keep this value in its `ui-config.json` under our own key, because its Train tab has the same labels."""
    component.custom_script_source = "textual_inversion"
    return component


def not_saved(component: Any) -> Any:
    """Keep a WebUI from saving this value in its `ui-config.json`, which would override ours at the next start."""
    component.do_not_save_to_config = True
    return component
