"""Folders of embedding files as names that prompts can use, each with what it holds or why it cannot be used.

Knows nothing of hosts, models or pages: the checkpoint is only the widths of its token tables.
"""

from __future__ import annotations

from textual_inversion.library.catalog import EmbeddingLibrary
from textual_inversion.library.entry import Entry
from textual_inversion.library.sidecars import About

__all__ = ["About", "EmbeddingLibrary", "Entry"]
