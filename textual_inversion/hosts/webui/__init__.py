"""What A1111, reForge and Forge share. Imported inside one of them only; knows no one of them."""

from __future__ import annotations

from textual_inversion.hosts.webui.current import current_host

__all__ = ["current_host"]
