"""Checkpoints of random weights: in memory as a state dict, or as a file in the LDM layout."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from textual_inversion.diffusion.checkpoint import TEXT, UNET, VAE
from textual_inversion.diffusion.clip import CLIPConfig, CLIPTextEncoder
from textual_inversion.diffusion.noise import NoiseSchedule
from textual_inversion.diffusion.unet import UNet, UNetConfig
from textual_inversion.diffusion.vae import VAE as AutoEncoder
from textual_inversion.diffusion.vae import VAEConfig
from textual_inversion.diffusion.weights.open_clip import OPEN_CLIP_MODULES

TINY_UNET = UNetConfig(model_channels=64, channel_mult=(1, 2, 2), num_res_blocks=(1, 1, 1), transformer_depth=(0, 1, 0), context_dim=64)
TINY_VAE = VAEConfig(32, (2, 1, 1, 2), 1)
TINY_CLIP = CLIPConfig(width=64, layers=4)
Config = UNetConfig | VAEConfig | CLIPConfig


def on_meta(config: Config) -> nn.Module:
    """The module of a config without memory for its weights."""
    with torch.device("meta"):
        if isinstance(config, UNetConfig):
            return UNet(config)
        return AutoEncoder(config) if isinstance(config, VAEConfig) else CLIPTextEncoder(config)


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a config's module."""
    return {key: tuple(value.shape) for key, value in on_meta(config).state_dict().items()}


def random_state(config: Config, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Weights that keep activations near 1; norms and biases are random too, so that no exchanged pair of them goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes_of(config).items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values *= 1 / math.sqrt(math.prod(shape[1:]))
        else:
            values = values * 0.2 + key.endswith("weight")
        state[key] = values.to(dtype)
    return state


def random_module(config: Config, seed: int = 0) -> nn.Module:
    """The frozen module of a config with random weights, fp32."""
    module = on_meta(config)
    module.load_state_dict(random_state(config, seed), assign=True)
    return module.requires_grad_(False).eval()


def checkpoint_tensors(
    unet: UNetConfig = TINY_UNET, vae: VAEConfig = TINY_VAE, clip: CLIPConfig = TINY_CLIP, dtype: torch.dtype = torch.float16
) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint in the LDM layout."""
    tensors = {"alphas_cumprod": NoiseSchedule.scaled_linear().alphas_cumprod}
    for seed, (prefix, config) in enumerate(((UNET, unet), (VAE, vae), (TEXT, clip))):
        tensors |= {prefix + key: value for key, value in random_state(config, seed, dtype).items()}
    return tensors


def open_clip(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """CLIP's tensors as OpenCLIP stores them: queries, keys and values in one."""
    found = {
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state.get("text_projection", torch.eye(8)),
        "logit_scale": torch.tensor(4.6),
    }
    layers = {key.split(".")[3] for key in state if key.startswith("text_model.encoder.layers.")}
    for part in ("weight", "bias"):
        found[f"ln_final.{part}"] = state[f"text_model.final_layer_norm.{part}"]
        for layer in layers:
            ours, theirs = f"text_model.encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
            found |= {f"{theirs}{their}.{part}": state[f"{ours}{our}.{part}"] for our, their in OPEN_CLIP_MODULES.items()}
            joined = torch.cat([state[f"{ours}self_attn.{one}_proj.{part}"] for one in "qkv"])
            found[f"{theirs}attn.in_proj_{part}"] = joined
    return {prefix + key: value for key, value in found.items()}


# widths of the text encoders as in SDXL, so that programs recognise the embeddings; everything else small
XL_FIRST = CLIPConfig(width=768, layers=2, fixed_layer=1, final_norm=False)
XL_SECOND = CLIPConfig(width=1280, layers=2, quick_gelu=False, fixed_layer=1, final_norm=False, projection=1280)
XL_UNET = UNetConfig(
    model_channels=64,
    channel_mult=(1, 2),
    num_res_blocks=(1, 1),
    transformer_depth=(0, 2),
    middle_depth=2,
    context_dim=768 + 1280,
    linear_projection=True,
    label_channels=1280 + 6 * 256,
)


def write_sdxl(path: str | os.PathLike[str], *, unet: UNetConfig = XL_UNET, dtype: torch.dtype = torch.float16, seed: int = 0) -> Path:
    """Write a small SDXL checkpoint of random weights, as the original files are laid out."""
    first = {"conditioner.embedders.0.transformer." + key: value for key, value in random_state(XL_FIRST, seed + 3, dtype).items()}
    second = open_clip(random_state(XL_SECOND, seed + 4, dtype), "conditioner.embedders.1.model.")
    return write_checkpoint(path, unet=unet, drop=[TEXT], extra={**first, **second}, dtype=dtype)


def write_checkpoint(
    path: str | os.PathLike[str],
    *,
    unet: UNetConfig = TINY_UNET,
    vae: VAEConfig = TINY_VAE,
    clip: CLIPConfig = TINY_CLIP,
    dtype: torch.dtype = torch.float16,
    drop: Iterable[str] = (),
    extra: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a checkpoint of random weights.

    Args:
        path: where, ending in `.safetensors`.
        unet, vae, clip: sizes; the tiny ones by default.
        dtype: type of the stored weights.
        drop: names of tensors that are left out; one that ends in `.` leaves out everything under it.
        extra: tensors that are added, or that take the place of others.
    """
    drop = tuple(drop)
    tensors = {
        key: value
        for key, value in checkpoint_tensors(unet, vae, clip, dtype).items()
        if key not in drop and not key.startswith(tuple(name for name in drop if name.endswith(".")))
    }
    save_file(tensors | dict(extra or {}), path)
    return Path(path)
