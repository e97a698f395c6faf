"""Training: data, events, the step and the run; `trainer.py` is the run from top to bottom. Names are imported at their first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textual_inversion.training.embedding_file import create_embedding
    from textual_inversion.training.trainer import train, train_together

__all__ = ["create_embedding", "train", "train_together"]


def __getattr__(name: str) -> Any:
    """Import torch only when somebody trains: pages import the events without it."""
    if name in ("train", "train_together"):
        from textual_inversion.training import trainer

        return getattr(trainer, name)
    if name == "create_embedding":
        from textual_inversion.training.embedding_file import create_embedding

        return create_embedding
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
