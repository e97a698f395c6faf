"""Registers this package's callbacks, tab, options and routes with the WebUI.

When its page is reloaded, the WebUI forgets every callback and runs the extension's script again, while this package stays in memory.
So each reload repeats every registration, and our changes to the WebUI are undone when it unloads its scripts.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules import script_callbacks, shared

from textual_inversion.app.engine import Engine
from textual_inversion.hosts.webui import current_engine, current_host, is_registered, options, set_current
from textual_inversion.hosts.webui.turn import scripts_loaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual_inversion.hosts.webui.host import WebUIHost

_SCRIPT = Path(__file__).parents[3] / "scripts" / "textual_inversion_tab.py"
_log = logging.getLogger(__name__)


def register(make_host: Callable[[], WebUIHost], draw_tab: Callable[[WebUIHost, Engine], None]) -> None:
    """Register everything, once for each time that the WebUI loads its scripts.

    Args:
        make_host: the adapter of this WebUI; called once for the whole process, so that a running job survives a reload.
        draw_tab: registers where the Train page goes, which differs between WebUIs.
    """
    begun = time.perf_counter()
    again = is_registered()
    if not again:
        host = make_host()
        set_current(host, Engine(host))
    host, engine = current_host(), current_engine()
    host.install(engine.library)
    scripts_loaded.set()
    listen("ui_settings", options.add_options)
    listen("before_ui", _before_ui)
    listen("before_token_counter", _before_token_counter)
    listen("model_loaded", _model_loaded)
    listen("app_started", partial(_app_started, again))
    listen("script_unloaded", _script_unloaded)
    draw_tab(host, engine)
    _log.debug("Textual Inversion registered in %.3f s", time.perf_counter() - begun)


def listen(kind: str, callback: Callable[..., Any]) -> None:
    """Have the WebUI call `callback`; `kind` is its name for the event, such as `ui_tabs`.

    The WebUI's `on_…` functions do the same, but search the whole stack for the caller's file name, which takes 0.2 s a call.
    """
    if "filename" in signature(script_callbacks.add_callback).parameters:
        callbacks = script_callbacks.callback_map[f"callbacks_{kind}"]
        script_callbacks.add_callback(callbacks, callback, category=kind, filename=str(_SCRIPT))
    else:
        getattr(script_callbacks, f"on_{kind}")(callback)


def _before_ui() -> None:
    from textual_inversion.hosts.webui.cards import replace_page
    from textual_inversion.hosts.webui.prompts import run_last

    replace_page(current_host(), current_engine())
    run_last()


def _before_token_counter(params: Any) -> None:
    from textual_inversion.hosts.webui.prompts import before_token_counter

    before_token_counter(params)


def _model_loaded(_model: Any) -> None:
    current_host().model_loaded()


def _script_unloaded() -> None:
    """Undo our changes to the WebUI. If the WebUI will load this extension again, a job that ends earlier waits for that."""
    current_host().remove()
    disabled = getattr(shared.opts, "disable_all_extensions", "none") != "none"
    disabled |= _SCRIPT.parents[1].name in getattr(shared.opts, "disabled_extensions", ())
    if not disabled and _SCRIPT.is_file():
        scripts_loaded.clear()


def _app_started(again: bool, blocks: Any, app: Any) -> None:
    from textual_inversion.ui.routes import add_routes
    from textual_inversion.ui.uploads import guard_events, of_our_tab

    if blocks is not None:  # None without a page
        guard_events(blocks, of_our_tab)

    if again:  # the WebUI may have read the embeddings with its own reader during the reload
        current_engine().refresh()
    add_routes(app, current_engine(), allowed_hosts=None)  # accept every host name: `--share`, the proxy of a rented machine
    if getattr(shared.cmd_opts, "api", False) or getattr(shared.cmd_opts, "nowebui", False):
        from textual_inversion.hosts.webui.api import add_api

        add_api(app, current_engine())
