"""The addresses that the page's script reads, in the WebUI's own app. Knows nothing of what they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual_inversion.ui.routes import add_routes

if TYPE_CHECKING:
    from textual_inversion.hosts.webui.host import WebUIHost


def add_page_routes(app: Any, host: WebUIHost) -> None:
    """Put the page's routes into `app`, under whatever name the WebUI is reached by: `--share`, a rented machine's proxy."""
    add_routes(app, host, allowed_hosts=None)
