"""A small WebUI for whoever has none. Importing it fetches nothing; gradio is loaded by the first name that is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textual_inversion.hosts.standalone.app import build_app, serve

__all__ = ["build_app", "serve"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from textual_inversion.hosts.standalone import app

        return getattr(app, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
