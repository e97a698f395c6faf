"""The entry of the extension in a WebUI: finds out which WebUI this is, its adapter, and where its Train page goes."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine
    from textual_inversion.hosts.webui.host import WebUIHost


def webui_name() -> str:
    """Which WebUI this process is: `forge`, `reforge` or `a1111`."""
    if _has("backend.diffusion_engine"):
        return "forge"
    return "reforge" if _has("ldm_patched") and _has("modules_forge") else "a1111"


def register() -> None:
    """Register with the WebUI that this process is; called by its script at each load of the page."""
    from textual_inversion.hosts.webui import registration

    name = webui_name()
    registration.register(partial(_make_host, name), _draw_as_tab if name == "forge" else _draw_in_train_tabs)


def _make_host(name: str) -> WebUIHost:
    """The adapter of that WebUI; only its own modules can be imported here."""
    if name == "forge":
        from textual_inversion.hosts.forge import ForgeHost

        return ForgeHost()
    if name == "reforge":
        from textual_inversion.hosts.reforge import ReForgeHost

        return ReForgeHost()
    from textual_inversion.hosts.a1111 import A1111Host

    return A1111Host()


def _draw_in_train_tabs(host: WebUIHost, engine: Engine) -> None:
    """A tab inside the WebUI's own Train tab."""
    from textual_inversion.hosts.webui.registration import listen

    def draw(params: Any) -> None:
        from textual_inversion.app.installing import Installing
        from textual_inversion.ui.page import draw_train_tab

        draw_train_tab(engine, host, params.txt2img_preview_params, first=True, installing=Installing(engine, host.tokens))

    listen("ui_train_tabs", draw)


def _draw_as_tab(host: WebUIHost, engine: Engine) -> None:
    """A tab of its own, for a WebUI that has no Train tab."""
    from textual_inversion.hosts.webui.registration import listen

    def draw() -> list[tuple[Any, str, str]]:
        from textual_inversion.app.installing import Installing
        from textual_inversion.hosts.webui.generation import txt2img_components
        from textual_inversion.ui.page import TrainBlocks

        return [(TrainBlocks(engine, host, txt2img_components(), Installing(engine, host.tokens)), "Train", "ti_train_tab")]

    listen("ui_tabs", draw)


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False
