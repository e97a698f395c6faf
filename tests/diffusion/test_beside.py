"""Inpainting and instruct-pix2pix UNets: what they see beside the noisy latents, against diffusers; learned with and drawn with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.checkpoint_kinds import CLIP_CONFIG, UNET_CONFIG, VAE_CONFIG
from tests.support.checkpoints import TEXT, XL_UNET, open_clip, random_state, write_checkpoint, write_sdxl
from tests.support.references import apart, diffusers_unet, diffusers_vae
from textual_inversion.diffusion.checkpoint import checkpoint_facts
from textual_inversion.diffusion.clip import CLIPConfig
from textual_inversion.diffusion.conditioning import Conditioning
from textual_inversion.diffusion.generate import generate
from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
from textual_inversion.errors import UnsupportedCheckpointError
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.embedding_file import create_embedding
from textual_inversion.training.events import Event
from textual_inversion.training.preflight import preflight
from textual_inversion.training.trainer import train

CHANNELS = {"inpainting": 9, "instruct-pix2pix": 8}
SD2_CLIP = CLIPConfig(width=64, layers=3, quick_gelu=False)


def written(path: Path, family: str, channels: int) -> Path:
    """A small checkpoint of random weights whose UNet has so many channels."""
    if family == "SDXL":
        return write_sdxl(path, unet=replace(XL_UNET, in_channels=channels))
    unet = replace(UNET_CONFIG, model_channels=64, in_channels=channels, linear_projection=family == "SD2")
    if family == "SD1":
        return write_checkpoint(path, unet=unet, vae=VAE_CONFIG, clip=replace(CLIP_CONFIG, vocab_size=49408))
    text = open_clip(random_state(SD2_CLIP, 3), "cond_stage_model.model.")
    return write_checkpoint(path, unet=unet, vae=VAE_CONFIG, drop=[TEXT], extra=text)


def loaded(path: Path) -> StableDiffusion:
    return load_checkpoint(path, device="cpu", precision="fp32", prediction_type="epsilon")


def reference_input(model: StableDiffusion, noisy: torch.Tensor, kind: str) -> torch.Tensor:
    """The UNet's input as diffusers' pipelines join it, with everything masked or without a picture."""
    if kind == "instruct-pix2pix":
        return torch.cat((noisy, torch.zeros_like(noisy)), dim=1)
    scale = model.vae.config.downscale
    picture = torch.rand(1, 3, noisy.shape[2] * scale, noisy.shape[3] * scale) * 2 - 1
    mask = torch.ones(1, 1, *noisy.shape[2:])
    encoder = diffusers_vae(model.vae.config, model.vae.state_dict())
    masked = encoder.encode(picture * (mask[0, 0, 0, 0] < 0.5)).latent_dist.mean * model.vae.scale_factor
    return torch.cat((noisy, *(each.expand(len(noisy), -1, -1, -1) for each in (mask, masked))), dim=1)


@torch.no_grad()
@pytest.mark.parametrize("kind", CHANNELS)
@pytest.mark.parametrize("family", ["SD1", "SD2", "SDXL"])
def test_the_unet_sees_what_it_sees_in_diffusers(tmp_path: Path, family: str, kind: str) -> None:
    model = loaded(written(tmp_path / "some.safetensors", family, CHANNELS[kind]))
    assert model.family == family
    (note,) = model.notes
    assert note.startswith(f"some.safetensors is an {kind} checkpoint: ")
    config, generator = model.unet.config, torch.Generator().manual_seed(1)
    pooled = torch.randn(2, 1280, generator=generator) if family == "SDXL" else None
    context, sizes = torch.randn(2, 77, config.context_dim, generator=generator), torch.tensor([[64, 48, 0, 0, 64, 48]] * 2)
    is_xl = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "class_embed_type": None} if family == "SDXL" else {}
    theirs = diffusers_unet(config, model.unet.state_dict(), **is_xl)
    added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}} if is_xl else {}
    for height, width in ((8, 6), (4, 8)):  # what is known of one size is not taken for another
        noisy, timesteps = torch.randn(2, 4, height, width, generator=generator), torch.tensor([3, 800])
        expected = theirs(reference_input(model, noisy, kind), timesteps, context, **added).sample
        for _ in range(2):
            assert apart(model.predict(noisy, timesteps, Conditioning(context, pooled), sizes), expected) < 1e-4


@pytest.mark.parametrize("kind", CHANNELS)
def test_words_are_learned_and_drawn_with_it(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "some.safetensors", "SD1", CHANNELS[kind])
    (tmp_path / "pictures").mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "pictures" / f"{number}.png")
    model = loaded(path)
    before = create_embedding(model, "zorb", "star", 1, tmp_path / "embeddings")
    config = TrainingConfig("zorb", str(tmp_path / "pictures"), width=64, height=64, steps=2, batch_size=1, device="cpu", method="classic")
    said = [finding.text for finding in preflight(config, 1, path).findings]
    assert f"{model.notes[0]}" in said
    start = before.read_bytes()
    events: list[Event] = []
    train(config, model, tmp_path / "embeddings", listener=events.append)
    assert [event.text for event in events if getattr(event, "text", "") == model.notes[0]]
    assert before.read_bytes() != start
    settings = GenerationSettings("a star", steps=2, width=64, height=64)
    (picture,) = generate(model, settings, {})
    (again,) = generate(model, settings, {})
    assert picture.tobytes() == again.tobytes()


def test_an_inpainting_checkpoint_of_sd2_draws_at_512(tmp_path: Path) -> None:
    """It was trained on the smaller one, which predicts the noise; most other SD2 checkpoints predict v, at 768."""
    full = replace(UNET_CONFIG, model_channels=320, channel_mult=(1,), num_res_blocks=(1,), transformer_depth=(1,), linear_projection=True)
    text = open_clip(random_state(SD2_CLIP, 3), "cond_stage_model.model.")
    sizes = {}
    for channels in (4, 9):
        path = tmp_path / f"{channels}.safetensors"
        write_checkpoint(path, unet=replace(full, in_channels=channels), vae=VAE_CONFIG, drop=[TEXT], extra=text)
        sizes[channels] = checkpoint_facts(path).picture_size
    assert sizes == {4: 768, 9: 512}


@pytest.mark.parametrize("channels", [3, 5, 7, 16])
def test_other_inputs_are_refused_with_their_number(tmp_path: Path, channels: int) -> None:
    path = written(tmp_path / "odd.safetensors", "SD1", channels)
    with pytest.raises(UnsupportedCheckpointError, match=rf"^odd\.safetensors has a UNet for {channels} channels, .*\.$"):
        load_checkpoint(path, device="cpu")
