"""Training: settings, events, the step and the run. Knows nothing of pages or hosts; names are looked up when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textual_inversion.training.embedding_file import create_embedding
    from textual_inversion.training.trainer import train

__all__ = ["create_embedding", "train"]


def __getattr__(name: str) -> Any:
    """Import torch only for those who train: pages read settings and events from here without it."""
    if name == "train":
        from textual_inversion.training.trainer import train

        return train
    if name == "create_embedding":
        from textual_inversion.training.embedding_file import create_embedding

        return create_embedding
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
