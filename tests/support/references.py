"""diffusers' and transformers' modules with the same weights as ours, by diffusers' own reading of the LDM layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from textual_inversion.diffusion.checkpoint import UNET, VAE
from textual_inversion.diffusion.clip import CLIPConfig
from textual_inversion.diffusion.unet import UNetConfig
from textual_inversion.diffusion.vae import VAEConfig

State = dict[str, torch.Tensor]


def unet_options(config: UNetConfig) -> dict[str, Any]:
    """Arguments of `UNet2DConditionModel` for one of our configs, whose levels all have the same number of blocks."""
    widths = [config.model_channels * mult for mult in config.channel_mult]
    attends = [depth > 0 for depth in config.transformer_depth]
    (layers,) = set(config.num_res_blocks)
    label = (
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": config.label_channels} if config.label_channels else {}
    )
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        # diffusers means the number of heads by this argument
        "attention_head_dim": tuple(max(1, config.heads(width)) for width in widths),
        "transformer_layers_per_block": tuple(max(1, depth) for depth in (*config.transformer_depth[:-1], config.middle_depth)),
        "cross_attention_dim": config.context_dim,
        "use_linear_projection": config.linear_projection,
        **label,
    }


def diffusers_unet(config: UNetConfig, state: State, **more: Any) -> UNet2DConditionModel:
    """diffusers' UNet with our weights, in the same memory; `more` are further arguments of its."""
    options = unet_options(config) | more
    return _filled(
        lambda: UNet2DConditionModel(**options), convert_ldm_unet_checkpoint({UNET + key: value for key, value in state.items()}, options)
    )


def diffusers_vae(config: VAEConfig, state: State) -> AutoencoderKL:
    """diffusers' VAE with our weights, in the same memory."""
    widths = [config.base_channels * mult for mult in config.channel_mult]
    options = {
        "block_out_channels": tuple(widths),
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.latent_channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }

    def build() -> AutoencoderKL:
        vae = AutoencoderKL(**options)
        if config.base_channels != widths[0]:  # LDM can begin narrower than its first level; diffusers has no option for it
            vae.encoder.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
            vae.encoder.down_blocks[0].resnets[0] = ResnetBlock2D(
                in_channels=config.base_channels, out_channels=widths[0], temb_channels=None, eps=1e-6
            )
        return vae

    return _filled(build, convert_ldm_vae_checkpoint({VAE + key: value for key, value in state.items()}, options))


def transformers_clip(config: CLIPConfig, state: State) -> CLIPTextModel:
    """transformers' text encoder with our weights; its attention is the plain one."""
    options = CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        hidden_act="quick_gelu" if config.quick_gelu else "gelu",
        attn_implementation="eager",
    )
    model = CLIPTextModel(options)  # not on the meta device: it holds position ids that no checkpoint has
    shorter = not any(key.startswith("text_model.") for key in model.state_dict())  # names differ between versions
    state = {key.removeprefix("text_model.") if shorter else key: value for key, value in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not unexpected
    assert all("position_ids" in key for key in missing)
    return model.requires_grad_(False).eval()


def _filled(build: Callable[[], nn.Module], state: State) -> Any:
    with torch.device("meta"):
        module = build()
    # attention weights are 1x1 convolutions in some layouts and linear layers in others
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    module.load_state_dict({key: value.reshape(shapes[key]) for key, value in state.items()}, assign=True)
    return module.requires_grad_(False).eval()


@torch.no_grad()
def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest number in `b`."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def epsilons(module: nn.Module) -> dict[int, float]:
    """Where each norm's weights are in memory -> what it adds to the variance. Random activations are too large for it to show."""
    return {part.weight.data_ptr(): part.eps for part in module.modules() if isinstance(part, (nn.GroupNorm, nn.LayerNorm))}
