"""Forge as a host: its chosen checkpoint, its memory, its text engines' tables of embeddings.

Forge has no model at the start, and loads the chosen one for the first picture; training does not need it, because training reads the file.
While Forge loads, it replaces PyTorch's layers in the whole process; so we hold its queue whenever we build modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from backend import memory_management
from backend.text_processing import textual_inversion as engine_side
from modules import sd_models, shared
from modules.textual_inversion import textual_inversion as page_side

from textual_inversion.app.port import Checkpoint
from textual_inversion.errors import CheckpointError
from textual_inversion.files import FileStamp
from textual_inversion.hosts.webui.generation import complete_hashes, forget_conditioning
from textual_inversion.hosts.webui.host import WebUIHost
from textual_inversion.hosts.webui.tables import TableClass, names_of, widths_of
from textual_inversion.library import EmbeddingLibrary

_ENGINES = ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g")
_VAE_KEYS = ("encoder.conv_in.weight", "first_stage_model.encoder.conv_in.weight")


class ForgeHost(WebUIHost):
    """Forge. It uses the chosen checkpoint, loaded or not."""

    def __init__(self) -> None:
        engine = TableClass(
            engine_side.EmbeddingDatabase, engine_side.Embedding, lambda table, embedding: table.register_embedding(embedding)
        )
        page = TableClass(
            page_side.EmbeddingDatabase, page_side.Embedding, lambda table, embedding: table.register_embedding(embedding, None)
        )
        super().__init__([engine, page])
        self._engines_library: EmbeddingLibrary | None = None
        self._engines_widths: dict[str, int] | None = None

    def before_loading(self) -> None:
        """Clear Forge's load hash when there is no model: after a failed load, Forge still takes the earlier model for loaded."""
        if sd_models.model_data.sd_model is None:
            sd_models.model_data.forge_hash = ""

    def before_prompts(self) -> None:
        """Have Forge read its folder again if a file has changed; by itself it reads the folder once for each model."""
        for engine in self._engines():
            if self.tables.is_stale(engine.embeddings):
                engine.embeddings.load_textual_inversion_embeddings()

    def before_sampling(self, p: Any) -> None:
        """Complete the embedding hashes in the batch's infotext."""
        complete_hashes(p, next(iter(self._engines()), None))

    def known_names(self) -> Mapping[str, int]:
        """Names in the loaded model's tables; before the first load, those of the embeddings that fit the chosen checkpoint."""
        engines = self._engines()
        if not engines:
            usable = [entry for entry in self.library().entries() if entry.usable]
            return {name: entry.info.num_vectors for entry in usable if entry.info for name in names_of(entry)}
        return {name: int(embedding.vectors) for engine in engines for name, embedding in list(engine.embeddings.word_embeddings.items())}

    def read_embeddings(self) -> None:
        """Have the text engines of the loaded model read the folder again."""
        for engine in self._engines() if self.tables.installed else []:
            engine.embeddings.load_textual_inversion_embeddings()
        forget_conditioning()

    def device(self) -> str:
        """Where the host computes."""
        return str(memory_management.get_torch_device())

    def checkpoint(self) -> Checkpoint:
        """The chosen checkpoint; raises `CheckpointError` when there is none."""
        info = sd_models.select_checkpoint()
        if info is None:
            raise CheckpointError("Forge has no checkpoint; put one into models/Stable-diffusion and press the refresh button.")
        chosen = [Path(name) for name in getattr(shared.opts, "forge_additional_modules", None) or []]  # the list "VAE / Text Encoder"
        vae = next((path for path in chosen if _is_vae(path, FileStamp.of(path))), None)
        return Checkpoint(info.name_for_extra, Path(info.filename), vae)

    @contextmanager
    def lent_memory(self) -> Iterator[None]:
        """Keep the host's models off the GPU inside the context; its memory management loads them again for the next picture."""
        if memory_management.get_torch_device().type != "cpu":
            memory_management.unload_all_models()
        try:
            yield
        finally:
            memory_management.soft_empty_cache()

    def _engines(self) -> list[Any]:
        model = sd_models.model_data.sd_model
        return [getattr(model, name) for name in _ENGINES if hasattr(getattr(model, name, None), "embeddings")]

    def library_for(self, table: Any) -> EmbeddingLibrary:
        """The library for a table: a page's table accepts the chosen checkpoint's widths, an engine's table those of its model."""
        widths = widths_of(table)
        if widths is None:
            return self.library()
        if self._engines_library is None:
            self._engines_library = EmbeddingLibrary(list(self.folders().searched), widths)
        elif widths != self._engines_widths:
            self._engines_library.set_width(widths)
        self._engines_widths = widths
        return self._engines_library


@lru_cache(maxsize=32)
def _is_vae(path: Path, _stamp: FileStamp | None) -> bool:
    """Whether a file holds a VAE. An unchanged file is read once only, because pages ask every second."""
    from textual_inversion.diffusion.checkpoint import CheckpointFile

    try:
        shapes = CheckpointFile.open(path).shapes
    except CheckpointError:
        return "vae" in path.name.lower()  # training reports that it cannot be used
    return any(key in shapes for key in _VAE_KEYS)
