"""Stand-ins for what the adapters ask A1111, Forge and reForge for: their tables, models, memory and queue, no more.

`stand_ins(kind, root)` makes a fresh set over folders of a test, and an object to look at it and change it with.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

KINDS = ("a1111", "forge", "reforge")


class Table:
    """`EmbeddingDatabase`: scans its folders, and calls `load_from_file` for each file."""

    def __init__(self, folder: str, expected_shape: int = -1) -> None:
        self.embedding_dirs = {folder: None}
        self.word_embeddings: dict[str, Any] = {}
        self.skipped_embeddings: dict[str, Any] = {}
        self.expected_shape = expected_shape
        self.read_by_host: list[str] = []
        self.scans = 0

    def load_from_file(self, path: str, filename: str) -> None:
        self.read_by_host.append(filename)

    def scan(self) -> None:
        self.scans += 1
        self.word_embeddings.clear()
        self.skipped_embeddings.clear()
        for folder in self.embedding_dirs:
            for root, _, names in os.walk(folder):
                for name in names:
                    self.load_from_file(os.path.join(root, name), name)


class TableOfOne(Table):
    """Of A1111 and reForge, and of Forge's cards: scans when it is told that it must, or when the folder's time changed."""

    def load_textual_inversion_embeddings(self, force_reload: bool = False, sync_with_sd_model: bool = True) -> None:
        if force_reload:
            self.scan()

    def register_embedding(self, embedding: Any, model: Any) -> None:
        self.word_embeddings[embedding.name] = embedding

    def get_expected_shape(self) -> int:
        return self.expected_shape


class TableOfAnEngine(Table):
    """Of each of Forge's text engines: always scans."""

    def load_textual_inversion_embeddings(self) -> None:
        self.scan()

    def register_embedding(self, embedding: Any) -> None:
        self.word_embeddings[embedding.name] = embedding


class HostsEmbedding:
    """`Embedding`."""

    def __init__(self, vec: Any, name: str, step: int | None = None) -> None:
        self.vec, self.name, self.step = vec, name, step
        self.vectors = self.shape = 0


class Inside:
    """What a test sees of the stand-ins.

    Attributes:
        tables: the tables that prompts are read by.
        classes: every class of tables.
        on_card: whether the WebUI's models are on the card.
        queue: the WebUI's queue lock.
        checkpoint: the file that is chosen; None = there is none.
    """

    def __init__(self, kind: str, root: Path, checkpoint: Path) -> None:
        self.kind, self.root, self.checkpoint = kind, root, checkpoint
        self.queue = threading.Lock()
        self.device = torch.device("cpu")
        self.on_card = True
        self.gives_back = kind == "a1111"  # the others' own management does, when a picture needs it
        self.saved = 0
        self.tables: list[Table] = []
        self.classes: list[type[Table]] = []

    def known(self) -> set[str]:
        """Words that prompts know."""
        return {name for table in self.tables for name in table.word_embeddings}

    def options(self) -> Any:
        return self.modules["modules.shared"].opts

    modules: dict[str, ModuleType]


def stand_ins(kind: str, root: Path, checkpoint: Path, width: int) -> Inside:
    """Modules of a WebUI whose model is loaded, its text encoder `width` wide; in `Inside.modules`, not yet in place."""
    inside = Inside(kind, root, checkpoint)
    (root / "embeddings").mkdir(parents=True)
    made = {**_shared(inside), **_models(inside), **_embeddings(inside, width)}
    made |= {"a1111": _a1111, "forge": _forge, "reforge": _reforge}[kind](inside, width)
    inside.modules = {name: _module(name, contents) for name, contents in made.items()}
    for name in sorted(inside.modules):
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(inside.modules[parent], leaf, inside.modules[name])
    return inside


def _module(name: str, contents: dict[str, Any]) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(contents)
    return made


def _shared(inside: Inside) -> dict[str, dict[str, Any]]:
    opts = SimpleNamespace(CLIP_stop_at_last_layers=1, textual_inversion_add_hashes_to_infotext=True, forge_additional_modules=[])
    opts.set = lambda name, value: setattr(opts, name, value)
    opts.save = lambda path: setattr(inside, "saved", inside.saved + 1)
    state = SimpleNamespace(job="", interrupted=False, stopping_generation=False, skipped=False, job_count=0, job_no=0, textinfo=None)
    state.begin = lambda job: setattr(state, "job", job)
    state.end = lambda: setattr(state, "job", "")
    state.assign_current_image = lambda picture: None
    folders = SimpleNamespace(embeddings_dir=str(inside.root / "embeddings"), textual_inversion_templates_dir=None, no_half=False)
    first = SimpleNamespace(cached_c=[None, None], cached_uc=[None, None])
    hires = SimpleNamespace(cached_hr_c=[None, None], cached_hr_uc=[None, None])
    return {
        "modules": {},
        "modules.shared": {"opts": opts, "cmd_opts": folders, "state": state, "config_filename": "config.json", "sd_model": object()},
        "modules.paths": {"data_path": str(inside.root)},
        "modules.call_queue": {"queue_lock": inside.queue},
        "modules.progress": {"start_task": lambda task: None, "finish_task": lambda task: None},
        "modules.hashes": {"sha256": lambda path, title: hashlib.sha256(Path(path).read_bytes()).hexdigest()},
        "modules.processing": {"StableDiffusionProcessing": first, "StableDiffusionProcessingTxt2Img": hires},
        "modules.prompt_parser": {},
    }


def _models(inside: Inside) -> dict[str, dict[str, Any]]:
    def select_checkpoint() -> Any:
        if inside.checkpoint is None:
            if inside.kind == "forge":
                return None
            raise FileNotFoundError
        return SimpleNamespace(filename=str(inside.checkpoint), name_for_extra=inside.checkpoint.stem)

    def move(where: bool) -> Any:
        return lambda *given: setattr(inside, "on_card", where)

    model = SimpleNamespace(cond_stage_model=SimpleNamespace(process_texts=lambda texts: []))
    data = SimpleNamespace(sd_model=model, loaded_sd_models=[model], forge_hash="loaded")
    sd_models = {"model_data": data, "select_checkpoint": select_checkpoint}
    return {"modules.sd_models": {**sd_models, "send_model_to_cpu": move(False), "send_model_to_device": move(True)}}


def _embeddings(inside: Inside, width: int) -> dict[str, dict[str, Any]]:
    table = type("EmbeddingDatabase", (TableOfOne,), {})
    embedding = type("Embedding", (HostsEmbedding,), {})
    inside.classes = [table]
    theirs = {"EmbeddingDatabase": table, "Embedding": embedding}
    return {"modules.textual_inversion": {}, "modules.textual_inversion.textual_inversion": theirs}


def _a1111(inside: Inside, width: int) -> dict[str, dict[str, Any]]:
    table: Any = inside.classes[0](str(inside.root / "embeddings"), width)
    inside.tables = [table]
    devices = SimpleNamespace(device=inside.device, torch_gc=lambda: None)
    return {
        "modules.devices": vars(devices),
        "modules.sd_hijack": {"model_hijack": SimpleNamespace(embedding_db=table)},
        "modules.sd_vae": {"loaded_vae_file": None},
    }


def _management(inside: Inside) -> dict[str, Any]:
    return {
        "get_torch_device": lambda: inside.device,
        "unload_all_models": lambda: setattr(inside, "on_card", False),
        "soft_empty_cache": lambda: None,
    }


def _reforge(inside: Inside, width: int) -> dict[str, dict[str, Any]]:
    own = {"ldm_patched": {}, "ldm_patched.modules": {}, "ldm_patched.modules.model_management": _management(inside)}
    return {**_a1111(inside, width), **own}


def _forge(inside: Inside, width: int) -> dict[str, dict[str, Any]]:
    engine_class = type("EmbeddingDatabase", (TableOfAnEngine,), {})
    embedding = type("Embedding", (HostsEmbedding,), {})
    table = engine_class(str(inside.root / "embeddings"), width)
    inside.tables, inside.classes = [table], [*inside.classes, engine_class]
    theirs = {"EmbeddingDatabase": engine_class, "Embedding": embedding}
    return {
        "backend": {},
        "backend.memory_management": _management(inside),
        "backend.text_processing": {},
        "backend.text_processing.textual_inversion": theirs,
    }


@contextmanager
def forgetting() -> Iterator[None]:
    """Whatever of ours is imported inside over stand-ins is forgotten afterwards."""
    parts = tuple(f"textual_inversion.hosts.{part}" for part in ("webui", *KINDS))
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.startswith(parts) and name not in before]:
            package, _, leaf = name.rpartition(".")
            del sys.modules[name]
            if hasattr(sys.modules.get(package), leaf):
                delattr(sys.modules[package], leaf)


def load_model(inside: Inside) -> None:
    """What Forge has after its first picture: a model with a text engine."""
    if inside.kind == "forge":
        engine = SimpleNamespace(embeddings=inside.tables[0], process_texts=lambda texts: [])
        inside.modules["modules.sd_models"].model_data.sd_model = SimpleNamespace(text_processing_engine=engine)
    for table in inside.tables:
        table.scan()
