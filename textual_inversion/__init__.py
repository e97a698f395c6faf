"""Textual Inversion: teach Stable Diffusion new words. This module lists the public names; each is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textual_inversion.diffusion.generate import generate
    from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
    from textual_inversion.embedding import Embedding, Provenance
    from textual_inversion.errors import TextualInversionError
    from textual_inversion.formats import FileInfo, describe, load, save
    from textual_inversion.library import EmbeddingLibrary
    from textual_inversion.settings.generation import GenerationSettings
    from textual_inversion.settings.training import TrainingConfig
    from textual_inversion.training.embedding_file import create_embedding
    from textual_inversion.training.trainer import train, train_together

__version__ = "0.1.0"

__all__ = [
    "Embedding",
    "EmbeddingLibrary",
    "FileInfo",
    "GenerationSettings",
    "Provenance",
    "StableDiffusion",
    "TextualInversionError",
    "TrainingConfig",
    "create_embedding",
    "describe",
    "generate",
    "load",
    "load_checkpoint",
    "save",
    "train",
    "train_together",
]

_WHERE = {
    "Embedding": "embedding",
    "EmbeddingLibrary": "library",
    "FileInfo": "formats",
    "GenerationSettings": "settings.generation",
    "Provenance": "embedding",
    "StableDiffusion": "diffusion.model",
    "TextualInversionError": "errors",
    "TrainingConfig": "settings.training",
    "create_embedding": "training.embedding_file",
    "describe": "formats",
    "generate": "diffusion.generate",
    "load": "formats",
    "load_checkpoint": "diffusion.model",
    "save": "formats",
    "train": "training.trainer",
    "train_together": "training.trainer",
}


def __getattr__(name: str) -> Any:
    """Import a public name from where it lives: pages and hosts start without torch."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
