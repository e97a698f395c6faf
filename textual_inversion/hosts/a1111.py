"""AUTOMATIC1111's WebUI as a host: its checkpoint, its VAE, its memory, its table of embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules import devices, sd_hijack, sd_models, sd_vae, shared
from modules.textual_inversion import textual_inversion as theirs

from textual_inversion.app.port import Checkpoint
from textual_inversion.errors import CheckpointError
from textual_inversion.hosts.webui.generation import complete_hashes
from textual_inversion.hosts.webui.host import WebUIHost
from textual_inversion.hosts.webui.tables import TableClass, widths_of

_log = logging.getLogger(__name__)


class A1111Host(WebUIHost):
    """A1111 1.10. It uses the loaded model; before the first load, the model that A1111 would load."""

    def __init__(self) -> None:
        table = TableClass(
            theirs.EmbeddingDatabase,
            theirs.Embedding,
            lambda database, embedding: database.register_embedding(embedding, shared.sd_model),
            lambda: devices.device,
        )
        super().__init__([table])

    def model_loaded(self) -> None:
        """Scan again if the new model takes other widths than the last model: the host may have only swapped weights."""
        database = _database()
        if self._model_in_use() is not None and database.get_expected_shape() != database.expected_shape:
            self.read_embeddings()

    def before_sampling(self, p: Any) -> None:
        """Complete the embedding hashes in the batch's infotext."""
        complete_hashes(p, _encoder())

    def known_names(self) -> Mapping[str, int]:
        """Names in the host's table."""
        return {name: int(embedding.vectors) for name, embedding in list(_database().word_embeddings.items())}

    def read_embeddings(self) -> None:
        """Have the host read its folders again. Before its first model, the host has not read any, so nothing is done."""
        if self.tables.installed and self._model_in_use() is not None:
            _database().load_textual_inversion_embeddings(force_reload=True)

    def searched_folders(self) -> tuple[Path, ...]:
        """Where the host looks."""
        return tuple(Path(folder) for folder in _database().embedding_dirs)

    def device(self) -> str:
        """Where the host computes."""
        return str(devices.device)

    def checkpoint(self) -> Checkpoint:
        """The loaded checkpoint, or before the first one the chosen one; raises `CheckpointError` when there is none."""
        model = self._model_in_use()
        info, widths = _checkpoint_info(model), widths_of(_database(), is_sdxl=getattr(model, "is_sdxl", False))
        vae = Path(sd_vae.loaded_vae_file) if sd_vae.loaded_vae_file else None
        return Checkpoint(info.name_for_extra, Path(info.filename), vae, widths)

    @contextmanager
    def lent_memory(self) -> Iterator[None]:
        """Keep the host's models in RAM inside the context; afterwards the current model returns to its device."""
        if devices.device.type == "cpu":
            yield  # the models are in RAM already
            return
        try:
            for model in {id(model): model for model in (sd_models.model_data.sd_model, *sd_models.model_data.loaded_sd_models)}.values():
                sd_models.send_model_to_cpu(model)
            yield
        finally:
            devices.torch_gc()
            if sd_models.model_data.sd_model is not None:
                sd_models.send_model_to_device(sd_models.model_data.sd_model)

    def _model_in_use(self) -> Any:
        """The loaded model; None before the first load and after a failed load. This never loads a model."""
        return sd_models.model_data.sd_model


def _database() -> Any:
    """The host's table of embeddings."""
    return sd_hijack.model_hijack.embedding_db


def _encoder() -> Any:
    """The object that splits prompts into chunks: the text encoder or, of several, the first one that can."""
    model = shared.sd_model
    whole = getattr(model, "cond_stage_model", None)
    parts = getattr(getattr(model, "conditioner", None), "embedders", [])
    return next((encoder for encoder in (whole, *parts) if hasattr(encoder, "process_texts")), None)


def _checkpoint_info(model: Any) -> Any:
    if model is not None and getattr(model, "sd_checkpoint_info", None) is not None:
        return model.sd_checkpoint_info
    try:
        info = sd_models.select_checkpoint()
    except FileNotFoundError as error:
        raise CheckpointError("The WebUI has no checkpoint; put one into models/Stable-diffusion and press the refresh button.") from error
    if info is None:
        raise CheckpointError("No checkpoint is chosen; choose one at the top of the page.")
    return info
