"""Maps folders of embedding files to names for prompts. Each name has its file's facts, or a reason why it is unusable.

Of a checkpoint the library knows only the widths of its token tables.
"""

from __future__ import annotations

from textual_inversion.library.catalog import EmbeddingLibrary
from textual_inversion.library.entry import Entry
from textual_inversion.library.sidecars import About

__all__ = ["About", "EmbeddingLibrary", "Entry"]
