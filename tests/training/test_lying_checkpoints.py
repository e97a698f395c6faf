"""A checkpoint whose header lies: the estimate refuses it in a sentence, as loading does, whatever the lie."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import write_checkpoint
from textual_inversion.diffusion.checkpoint import TEXT, UNET, VAE, CheckpointFile
from textual_inversion.errors import CheckpointError
from textual_inversion.training.embedding_file import create_embedding
from textual_inversion.training.estimate import step_cost

TABLE = TEXT + "text_model.embeddings.token_embedding.weight"
KEYS = [
    UNET + "input_blocks.0.0.weight",
    UNET + "input_blocks.1.0.out_layers.3.weight",
    UNET + "middle_block.1.proj_in.weight",
    UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
    UNET + "out.2.weight",
    UNET + "time_embed.0.weight",
    VAE + "encoder.conv_in.weight",
    VAE + "decoder.conv_out.weight",
    VAE + "quant_conv.weight",
    TABLE,
    TEXT + "text_model.embeddings.position_embedding.weight",
    TEXT + "text_model.encoder.layers.0.mlp.fc1.weight",
    TEXT + "text_model.final_layer_norm.bias",
]
LIES = [None, (), (0,), (1,), (0, 0), (2**30, 64), (64, 2**30), (3, 5, 7), (0, 4, 3, 3), (64, 4, 0, 0), (1, 1, 1, 1, 1, 1)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random.safetensors")


def cost(file: CheckpointFile) -> Any:
    return step_cost(file, (64, 64), torch.float32)


@pytest.mark.parametrize("key", KEYS)
def test_a_lie_about_one_tensor_is_refused(checkpoint: Path, key: str) -> None:
    whole = CheckpointFile.open(checkpoint)
    true = whole.shapes[key]
    for lie in [*LIES, *([true[::-1]] if true[::-1] != true else [])]:
        if lie == (2**30, 64) and "_embedding." in key:
            continue  # a longer table does no harm, and a file of that size would have to be there
        shapes = {name: shape for name, shape in whole.shapes.items() if name != key} | ({} if lie is None else {key: lie})
        with pytest.raises(CheckpointError):
            cost(CheckpointFile.of_shapes(checkpoint, shapes))


def test_a_file_that_is_cut_off_is_refused_when_it_is_opened(checkpoint: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    shutil.copyfile(checkpoint, cut)
    with cut.open("r+b") as file:
        file.truncate(cut.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="is cut off"):
        CheckpointFile.open(cut)


@pytest.mark.parametrize("rows", [0, 100])
def test_a_token_table_that_is_too_short_makes_no_embedding(tmp_path: Path, rows: int) -> None:
    short = write_checkpoint(tmp_path / "short.safetensors", extra={TABLE: torch.zeros(rows, 64)})
    with pytest.raises(CheckpointError):
        create_embedding(short, "thing", "small cat", 2, tmp_path / "embeddings")
    with pytest.raises(CheckpointError):
        cost(CheckpointFile.open(short))
