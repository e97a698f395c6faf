"""reForge as a host: A1111 with another memory management."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ldm_patched.modules import model_management
from modules import sd_models

from textual_inversion.hosts.a1111 import A1111Host


class ReForgeHost(A1111Host):
    """reForge; everything that it shares with A1111 is inherited."""

    def device(self) -> str:
        """Where the host computes."""
        return str(model_management.get_torch_device())

    def _model_in_use(self) -> Any:
        """The loaded model if it is complete. reForge dismantles a model before it loads another, and keeps the remains if that fails."""
        model = super()._model_in_use()
        return model if any(model is whole for whole in sd_models.model_data.loaded_sd_models) else None

    @contextmanager
    def lent_memory(self) -> Iterator[None]:
        """Keep the host's models off the GPU inside the context; its memory management loads them again for the next picture."""
        if model_management.get_torch_device().type != "cpu":
            model_management.unload_all_models()
        try:
            yield
        finally:
            model_management.soft_empty_cache()
