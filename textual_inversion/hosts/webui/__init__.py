"""The code that A1111, reForge and Forge share, and this process's one adapter and one engine. Imported inside a WebUI only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine
    from textual_inversion.hosts.webui.host import WebUIHost

_current: list[tuple[WebUIHost, Engine]] = []


def current_host() -> WebUIHost:
    """The WebUI's adapter, for callbacks that the WebUI calls.

    Raises:
        RuntimeError: nothing was registered yet.
    """
    return _registered()[0]


def current_engine() -> Engine:
    """The engine over `current_host`; raises the same error."""
    return _registered()[1]


def set_current(host: WebUIHost, engine: Engine) -> None:
    """Set the results of `current_host` and `current_engine`."""
    _current[:] = [(host, engine)]


def is_registered() -> bool:
    """Whether a host and an engine are registered."""
    return bool(_current)


def _registered() -> tuple[WebUIHost, Engine]:
    if not _current:
        raise RuntimeError("Textual Inversion is not registered with this WebUI.")
    return _current[0]
