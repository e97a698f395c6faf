"""An SDXL pipeline of diffusers, saved as a folder and loaded here: an embedding made here means the same in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.checkpoint_kinds import VAE_CONFIG
from tests.support.checkpoints import random_state
from tests.support.references import apart, diffusers_vae
from textual_inversion import formats
from textual_inversion.diffusion.conditioning import Conditioning, picture_sizes
from textual_inversion.diffusion.model import load_checkpoint
from textual_inversion.hosts.tiny_clip import write_clip_folder
from textual_inversion.prompts.tokenizer import END, START
from textual_inversion.training.embedding_file import create_embedding

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

FIRST, SECOND, TOLERANCE = 64, 128, 1e-4


def text_encoder(kind: type, width: int, activation: str) -> Any:
    """A text encoder of random weights."""
    torch.manual_seed(width)
    config = transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=3, num_attention_heads=width // 64,
        hidden_act=activation, projection_dim=width, bos_token_id=START,
        eos_token_id=END,  # with diffusers' older value 2, transformers takes the newest token of a prompt for its end
    )  # fmt: skip
    encoder = kind(config).eval().requires_grad_(False)
    for table in (encoder.text_model if hasattr(encoder, "text_model") else encoder).embeddings.children():
        table.weight.normal_(std=0.5)  # as they begin, words are hardly told apart
    return encoder


def pipeline(folder: Path) -> Any:
    """A whole SDXL pipeline in miniature."""
    (folder / "clip").mkdir()
    write_clip_folder(folder / "clip", FIRST, 3, 1)
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(64, 128), layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(1, 2), transformer_layers_per_block=(1, 2),
        cross_attention_dim=FIRST + SECOND, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=SECOND + 6 * 256,
    )  # fmt: skip
    vae = diffusers_vae(VAE_CONFIG, random_state(VAE_CONFIG, 2))
    vae.register_to_config(scaling_factor=0.13025)
    tokenizers = [transformers.CLIPTokenizer.from_pretrained(str(folder / "clip"), **more) for more in ({}, {"pad_token": "!"})]
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder(transformers.CLIPTextModel, FIRST, "quick_gelu"),
        text_encoder_2=text_encoder(transformers.CLIPTextModelWithProjection, SECOND, "gelu"),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet.eval().requires_grad_(False),
        scheduler=diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    )


@torch.no_grad()
def test_an_embedding_made_here_is_loaded_by_diffusers(tmp_path: Path) -> None:
    theirs = pipeline(tmp_path)
    theirs.save_pretrained(tmp_path / "model")
    model = load_checkpoint(tmp_path / "model", device="cpu", precision="fp32")
    assert (model.family, model.widths, model.prediction.name) == ("SDXL", {"clip_l": FIRST, "clip_g": SECOND}, "epsilon")
    path = create_embedding(model, "zorb", "red star", 2, tmp_path / "embeddings")
    saved = load_file(path)
    assert {name: tuple(rows.shape) for name, rows in saved.items()} == {"clip_l": (2, FIRST), "clip_g": (2, SECOND)}
    for name, encoder, tokenizer in (
        ("clip_l", theirs.text_encoder, theirs.tokenizer),
        ("clip_g", theirs.text_encoder_2, theirs.tokenizer_2),
    ):
        theirs.load_textual_inversion(saved[name], token="zorb", text_encoder=encoder, tokenizer=tokenizer)
    prompts = ["a photo of zorb on a hill", "a cat"]
    states, _, pooled, _ = theirs.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
    embedding = formats.load(path)
    table = model.conditioner.table_of({"zorb": embedding})
    ours = model.conditioner.encode(model.conditioner.tokenize(prompts, table), table.vectors)
    assert ours.pooled is not None
    assert apart(ours.context, states) < TOLERANCE
    assert apart(ours.pooled, pooled) < TOLERANCE
    assert apart(ours.context[:1], ours.context[1:]) > 100 * TOLERANCE, "the prompts are told apart"
    noisy, timesteps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([20, 700])
    sizes = picture_sizes([(64, 64)] * 2, "cpu")
    added = {"text_embeds": pooled, "time_ids": sizes}
    expected = theirs.unet(noisy, timesteps, states, added_cond_kwargs=added).sample
    assert apart(model.predict(noisy, timesteps, ours, sizes), expected) < TOLERANCE
    unspliced = Conditioning(ours.context[[1, 1]], ours.pooled[[1, 1]])
    assert apart(model.predict(noisy, timesteps, unspliced, sizes)[:1], expected[:1]) > TOLERANCE, "the word counts"
