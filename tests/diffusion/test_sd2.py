"""SD2 checkpoints: OpenCLIP's text encoder, its last layer but one, padding with zeros, vectors 1024 wide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import TINY_UNET, TINY_VAE, open_clip, random_state, write_checkpoint
from textual_inversion import formats
from textual_inversion.diffusion.checkpoint import TEXT, UNET, checkpoint_facts, token_tables
from textual_inversion.diffusion.clip import CLIPConfig, TokenBatch
from textual_inversion.diffusion.generate import generate
from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
from textual_inversion.errors import UnsupportedCheckpointError
from textual_inversion.prompts.tokenizer import END, START, default_tokenizer
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.embedding_file import create_embedding
from textual_inversion.training.preflight import preflight
from textual_inversion.training.trainer import train

WIDTH, LAYERS = 1024, 3
TEXT_CONFIG = CLIPConfig(width=WIDTH, layers=LAYERS, quick_gelu=False, fixed_layer=LAYERS - 1)
LDM = "cond_stage_model.model."


@pytest.fixture(scope="module")
def text_state() -> dict[str, torch.Tensor]:
    return random_state(TEXT_CONFIG, dtype=torch.float16)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, text_state: dict[str, torch.Tensor]) -> Path:
    unet = replace(TINY_UNET, context_dim=WIDTH, linear_projection=True)
    target = tmp_path_factory.mktemp("sd2") / "sd2.safetensors"
    return write_checkpoint(target, unet=unet, vae=TINY_VAE, drop=[TEXT], extra=open_clip(text_state, LDM), dtype=torch.float16)


@pytest.fixture(scope="module")
def sd2(path: Path) -> StableDiffusion:
    return load_checkpoint(path, device="cpu", precision="fp32")


def test_the_family_and_the_encoder(sd2: StableDiffusion, path: Path) -> None:
    assert (sd2.family, sd2.widths) == ("SD2", {"clip_h": WIDTH})
    assert checkpoint_facts(path).widths == {"clip_h": WIDTH}
    assert set(token_tables(path)) == {"clip_h"}
    assert sd2.text_encoder.config == TEXT_CONFIG
    assert "taken for the noise" in sd2.notes[0], "random weights predict nothing"


def test_the_hidden_states_are_those_of_transformers(sd2: StableDiffusion, text_state: dict[str, torch.Tensor]) -> None:
    transformers = pytest.importorskip("transformers")
    loaders = pytest.importorskip("diffusers.loaders.single_file_utils")
    sizes = {"vocab_size": 49408, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS - 1}
    config = transformers.CLIPTextConfig(**sizes, num_attention_heads=WIDTH // 64, hidden_act="gelu", eos_token_id=END)
    reference = transformers.CLIPTextModel(config).eval()
    stored = {key: value.float() for key, value in open_clip(text_state, LDM).items()}
    stored[LDM + "text_projection"] = torch.eye(WIDTH)
    converted = loaders.convert_open_clip_checkpoint(reference, stored, prefix=LDM)
    wanted = reference.state_dict()
    reference.load_state_dict({key: converted[key] if key in converted else converted["text_model." + key] for key in wanted})
    ids = torch.tensor([[START, *default_tokenizer().encode("a red star on a hill"), END]])
    ids = torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]))
    with torch.no_grad():
        theirs = reference(input_ids=ids).last_hidden_state
        ours = sd2.text_encoder(
            TokenBatch(ids, torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)), torch.zeros(1, WIDTH), 2
        ).hidden
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_prompts_are_padded_with_zeros(sd2: StableDiffusion) -> None:
    from textual_inversion.diffusion.conditioning import VectorTable

    table = VectorTable.of({}, {"clip_h": WIDTH}, "cpu")
    ids = sd2.conditioner.tokenize(["cat"], table).tokens.ids[0]
    assert ids[:4].tolist() == [START, *default_tokenizer().encode("cat"), END, 0]
    assert not ids[3:].any()


def test_an_embedding_is_created_trained_and_drawn(sd2: StableDiffusion, path: Path, tmp_path: Path) -> None:
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{number}.png")
    create_embedding(path, "zorb", "star", 2, tmp_path)
    config = TrainingConfig("zorb", str(pictures), steps=2, batch_size=2, width=64, height=64, device="cpu")
    assert preflight(config, 2, path).ready
    trained = train(config, sd2, tmp_path)
    read = formats.load(tmp_path / "zorb.safetensors")
    assert (read.family, set(read.vectors), read.provenance.step) == ("SD2", {"clip_h"}, 2)
    drawn = generate(sd2, GenerationSettings(prompt="zorb", steps=2, width=64, height=64), {"zorb": trained})
    assert drawn[0].size == (64, 64)


@pytest.mark.parametrize(("extra", "said"), [({UNET + "label_emb.0.0.weight": torch.zeros(4, 4)}, "unCLIP")])
def test_relatives_that_want_more_are_named(tmp_path: Path, extra: dict[str, torch.Tensor], said: str) -> None:
    unet = replace(TINY_UNET, linear_projection=True)
    small = {LDM + "ln_final.weight": torch.zeros(4), TEXT + "text_model.x": torch.zeros(1)}
    target = write_checkpoint(tmp_path / "u.safetensors", unet=unet, vae=TINY_VAE, extra={**small, **extra}, dtype=torch.float16)
    with pytest.raises(UnsupportedCheckpointError, match=said):
        load_checkpoint(target, device="cpu")
