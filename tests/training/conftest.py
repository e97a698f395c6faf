"""A checkpoint of random weights, pictures and an embedding to train."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.support.checkpoints import write_checkpoint
from textual_inversion import formats
from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.embedding_file import create_embedding


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random.safetensors")


@pytest.fixture
def model(checkpoint: Path) -> StableDiffusion:
    return load_checkpoint(checkpoint, device="cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, colour in enumerate(("red", "green", "blue")):
        picture = Image.new("RGB", (80, 64), colour)
        picture.paste("white", (10 * index, 8, 10 * index + 20, 40))
        picture.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a {colour} wall, evening light, number {index}", encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path, model: StableDiffusion) -> Path:
    """An embeddings folder with the untrained `thing`, two vectors."""
    path = tmp_path / "embeddings"
    create_embedding(model, "thing", "small cat", 2, path)
    return path


@pytest.fixture
def config(pictures: Path) -> TrainingConfig:
    size = {"width": 64, "height": 64}
    return TrainingConfig("thing", str(pictures), steps=4, batch_size=2, method="classic", learning_rate="0.01", device="cpu", **size)


@pytest.fixture
def vectors(folder: Path):
    """Reads the vectors that are in the file now."""
    return lambda: formats.load(folder / "thing.safetensors").vectors["clip_l"]
