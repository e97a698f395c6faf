"""What A1111, reForge and Forge share, and the one adapter of this process. Imported inside one of these WebUIs only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual_inversion.hosts.webui.host import WebUIHost

_host: list[WebUIHost] = []


def current_host() -> WebUIHost:
    """The WebUI's adapter.

    Raises:
        RuntimeError: nothing was registered yet.
    """
    if not _host:
        raise RuntimeError("Textual Inversion is not registered with this WebUI.")
    return _host[0]


def set_current_host(host: WebUIHost) -> None:
    """Make `host` the one that `current_host` gives."""
    _host[:] = [host]


def is_registered() -> bool:
    """Whether there is one."""
    return bool(_host)
