"""AUTOMATIC1111's WebUI as a host: its checkpoint, its VAE, its memory, its table of embeddings. Knows nothing of pages."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules import devices, sd_hijack, sd_models, sd_vae, shared
from modules.textual_inversion import textual_inversion as theirs

from textual_inversion.app.port import Checkpoint
from textual_inversion.diffusion.checkpoint import checkpoint_facts
from textual_inversion.errors import CheckpointError, TextualInversionError
from textual_inversion.hosts.webui.generation import complete_hashes, forget_conditioning
from textual_inversion.hosts.webui.host import WebUIHost
from textual_inversion.hosts.webui.tables import EmbeddingTables, Kind, widths_of

_log = logging.getLogger(__name__)


class A1111Host(WebUIHost):
    """A1111 1.10; the model that is loaded counts, and before one is, the one that would be."""

    def __init__(self) -> None:
        super().__init__()
        table = Kind(
            theirs.EmbeddingDatabase,
            theirs.Embedding,
            lambda database, made: database.register_embedding(made, shared.sd_model),
            lambda: devices.device,
        )
        self.tables = EmbeddingTables((table,), lambda _: self.library(), lambda: bool(self.option("own_reader")), forget_conditioning)

    def install(self) -> None:
        """Fill the host's table through this package's library from its next scan on."""
        self.tables.install()

    def remove(self) -> None:
        """Leave the host as it was."""
        self.tables.remove()

    def model_loaded(self) -> None:
        """Scan again if the model takes other widths than the last one; the host may have only swapped weights."""
        database = _database()
        if self._model_in_use() is not None and database.get_expected_shape() != database.expected_shape:
            self.embeddings_changed()

    def before_sampling(self, p: Any) -> None:
        """The batch's infotext names all its embeddings."""
        complete_hashes(p, _encoder())

    def known_names(self) -> Mapping[str, int]:
        """Names in the host's table."""
        return {name: int(embedding.vectors) for name, embedding in list(_database().word_embeddings.items())}

    def embeddings_changed(self) -> None:
        """Files were written: they count from the next picture on. Before its first model the host has not read any."""
        if self.tables.installed and self._model_in_use() is not None:
            _database().load_textual_inversion_embeddings(force_reload=True)

    def embedding_folders(self) -> list[Path]:
        """Where the host looks."""
        return [Path(folder) for folder in _database().embedding_dirs] or super().embedding_folders()

    def device(self) -> str:
        """Where the host computes."""
        return str(devices.device)

    def checkpoint(self) -> Checkpoint:
        """The loaded checkpoint, or before the first one the chosen one; raises `CheckpointError` when there is none."""
        info = _checkpoint_info(self._model_in_use())
        path = Path(info.filename)
        return Checkpoint(info.name_for_extra, path, _size(path))

    def vae_file(self) -> Path | None:
        """The VAE that stands in for the checkpoint's own, if one does."""
        return Path(sd_vae.loaded_vae_file) if sd_vae.loaded_vae_file else None

    @contextmanager
    def lent_memory(self) -> Iterator[None]:
        """The host's models wait in RAM inside, and the current one is back on its device afterwards."""
        if devices.device.type == "cpu":
            yield  # there is nowhere else to go
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
        """The loaded model; None before the first one and where a load has failed. Asking loads none."""
        return sd_models.model_data.sd_model

    def _widths(self) -> dict[str, int] | None:
        return widths_of(_database()) or super()._widths()


def _database() -> Any:
    """The host's table of embeddings."""
    return sd_hijack.model_hijack.embedding_db


def _encoder() -> Any:
    """What cuts prompts into chunks: the text encoder or, of several, the first that can."""
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


def _size(path: Path) -> int:
    try:
        return checkpoint_facts(path).picture_size
    except TextualInversionError:
        return 512  # whether it can be trained on is told when it is to be
