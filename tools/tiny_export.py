"""Writes the tiny checkpoint like an ordinary checkpoint: one LDM-layout file in fp16, with an LDM-style `.yaml` beside it.

Legend: d width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from textual_inversion.diffusion.checkpoint import TEXT, UNET, VAE
from textual_inversion.diffusion.noise import NoiseSchedule
from textual_inversion.prompts.tokenizer import VOCABULARY_SIZE
from tools.tiny_unet import LENGTH, TINY_CLIP, TINY_UNET
from tools.tiny_vae import TINY_VAE

_TABLE = "text_model.embeddings.token_embedding.weight"


def run_export(folder: Path, report: Callable[[str], None]) -> None:
    """Join `vae.safetensors` and `unet.safetensors` of the folder into `tiny.safetensors`, and write `tiny.yaml`."""
    parts = load_file(folder / "unet.safetensors")
    ids = parts.pop("word_ids").tolist()
    tensors = {"alphas_cumprod": NoiseSchedule.scaled_linear().alphas_cumprod}
    for key, value in parts.items():
        prefix, _, name = key.partition(".")
        if name == _TABLE:
            value = full_table(value, ids)
        tensors[(TEXT if prefix == "clip" else UNET) + name] = value
    tensors |= {VAE + key: value for key, value in load_file(folder / "vae.safetensors").items()}
    stored = {key: value.half().contiguous() if key != "alphas_cumprod" else value for key, value in tensors.items()}
    path = folder / "tiny.safetensors"
    save_file(stored, path, metadata={"format": "pt"})
    (folder / "tiny.yaml").write_text(yaml_text(), encoding="utf-8")
    report(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {len(ids)} words")


def full_table(rows: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """The token table [49408, d]: the world's words at their ids, zeros elsewhere, which compress to almost nothing."""
    table = torch.zeros(VOCABULARY_SIZE, rows.shape[1])
    table[torch.tensor(ids)] = rows[1:].float()
    return table


def yaml_text() -> str:
    """The model's description in the form that LDM code reads; the text encoder's sizes are written beside it."""
    unet = TINY_UNET
    attention = [2**level for level, depth in enumerate(unet.transformer_depth) if depth]
    clip = {"hidden_size": TINY_CLIP.width, "num_hidden_layers": TINY_CLIP.layers, "num_attention_heads": TINY_CLIP.heads}
    return f"""# A Stable Diffusion in miniature. Text encoder: {json.dumps(clip)}, {LENGTH} tokens, quick GELU.
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 16
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: 0.18215
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 16
        in_channels: {unet.in_channels}
        out_channels: {unet.out_channels}
        model_channels: {unet.model_channels}
        attention_resolutions: {attention}
        num_res_blocks: {unet.num_res_blocks[0]}
        channel_mult: {list(unet.channel_mult)}
        num_heads: 8
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {unet.context_dim}
        use_checkpoint: false
        legacy: false
{_encoder_text()}"""


def _encoder_text() -> str:
    """The part of the description that is about the VAE and the text encoder."""
    vae = TINY_VAE
    return f"""    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: {vae.latent_channels}
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: {vae.latent_channels}
          resolution: 128
          in_channels: 3
          out_ch: 3
          ch: {vae.base_channels}
          ch_mult: {list(vae.channel_mult)}
          num_res_blocks: {vae.num_res_blocks}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: textual_inversion.hosts.tiny_clip.frozen_clip
      params:
        width: {TINY_CLIP.width}
        layers: {TINY_CLIP.layers}
        heads: {TINY_CLIP.heads}
        max_length: {LENGTH}
"""
