"""Embeddings for tests."""

from __future__ import annotations

from pathlib import Path

from textual_inversion.embedding import Embedding
from textual_inversion.formats import describe_all, load


def load_all(path: str | Path) -> list[Embedding]:
    """Every embedding in the file at `path`, each under its own word where there are several."""
    return [load(path, word=info.word) for info in describe_all(path)]
