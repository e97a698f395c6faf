"""A WebUI's modules as stand-ins, and a host over a folder of embeddings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support import webui as stand_ins
from textual_inversion.app.engine import Engine
from textual_inversion.hosts.standalone.adapter import StandaloneHost

OURS = "textual_inversion.hosts.webui"
ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "textual_inversion" / "assets" / "tiny" / "tiny.safetensors"


class Host(StandaloneHost):
    """Folders of this test and the tiny checkpoint, with what only WebUIs have; `engine` works over it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root, self.engine = root, Engine(self)
        self.options: dict[str, Any] = {"card_as_tag": False, "rewrite_prompts": True}
        self.known: dict[str, int] = {}

    def known_names(self) -> dict[str, int]:
        return self.known

    def option(self, name: str) -> Any:
        return self.options[name]

    def before_prompts(self) -> None:
        pass

    def before_sampling(self, p: Any) -> None:
        p.sampling = True


def write(folder: Path, name: str, vectors: int = 1, width: int = 64) -> Path:
    """An embedding file of random vectors."""
    path = folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": torch.randn(vectors, width)}, path)
    return path


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def webui(monkeypatch: pytest.MonkeyPatch, host: Host) -> Iterator[SimpleNamespace]:
    """The stand-ins, in place; `host` is registered. What was imported over them is forgotten afterwards."""
    before = {name for name in sys.modules if name.startswith(f"{OURS}.")}
    made = stand_ins.modules()
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    from textual_inversion.hosts.webui import set_current

    set_current(host, host.engine)  # type: ignore[arg-type]
    page = next(page for page in made["modules.ui_extra_networks"].extra_pages if page.name == "textual inversion")
    type(page).folders = [str(host.folders().embeddings)]
    yield SimpleNamespace(**{name.rpartition(".")[2]: module for name, module in made.items()}, page=page)
    package = sys.modules.get(OURS)
    for name in [name for name in sys.modules if name.startswith(f"{OURS}.") and name not in before]:
        del sys.modules[name]
        if hasattr(package, leaf := name.rpartition(".")[2]):
            delattr(package, leaf)
