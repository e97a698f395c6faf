"""Models with random weights, and batches for them. Needs no files, and only torch and safetensors.

Legend: b batch, l tokens, n vectors, d width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn

from textual_inversion.diffusion.checkpoint import CheckpointFile
from textual_inversion.diffusion.clip import CLIPConfig, CLIPTextEncoder, TokenBatch
from textual_inversion.diffusion.conditioning import TextConditioner, TokenizedPrompts
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.diffusion.noise import TRAIN_TIMESTEPS, Epsilon, NoiseSchedule
from textual_inversion.diffusion.unet import UNet, UNetConfig
from textual_inversion.diffusion.vae import VAE, VAEConfig
from textual_inversion.prompts.tokenizer import Tokenizer
from textual_inversion.training.data.batches import Batch

NUM_VECTORS = 4
Part = TypeVar("Part", bound=nn.Module)
_FIRST_PLACE = 5  # where the vectors stand in each prompt: "a photo of a ..."


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and of what it is trained on.

    Attributes:
        name: as shown in tables.
        unet, vae, clip: sizes of the parts.
        pixels: side of the training pictures.
    """

    name: str
    unet: UNetConfig
    vae: VAEConfig
    clip: CLIPConfig
    pixels: int

    @property
    def latents(self) -> int:
        """Side of the latents."""
        return self.pixels // self.vae.downscale


TINY = Sizes(
    "tiny, 128²",
    UNetConfig(model_channels=64, channel_mult=(1, 2, 2), num_res_blocks=(1, 1, 1), transformer_depth=(0, 1, 0), context_dim=64),
    VAEConfig(32, (2, 1, 1, 2), 1),
    CLIPConfig(width=64, layers=4),
    128,
)
SMALL = Sizes("a fifth of SD1.5, 128²", UNetConfig(model_channels=64, context_dim=128), VAEConfig(32), CLIPConfig(width=128, layers=6), 128)
SD15 = Sizes("SD1.5, 512²", UNetConfig(), VAEConfig(), CLIPConfig(), 512)
SD15_256 = Sizes("SD1.5, 256²", UNetConfig(), VAEConfig(), CLIPConfig(), 256)
_SDXL_UNET = UNetConfig(
    channel_mult=(1, 2, 4), num_res_blocks=(2, 2, 2), transformer_depth=(0, 2, 10), middle_depth=10, context_dim=2048,
    linear_projection=True, label_channels=2816,
)  # fmt: skip
SDXL = Sizes("SDXL UNet, 1024²", _SDXL_UNET, VAEConfig(), CLIPConfig(), 1024)
_TINY_XL_UNET = UNetConfig(
    model_channels=64, channel_mult=(1, 2), num_res_blocks=(1, 1), transformer_depth=(0, 1), context_dim=64, linear_projection=True,
    label_channels=32,
)  # fmt: skip
TINY_XL = Sizes("tiny SDXL UNet, 128²", _TINY_XL_UNET, VAEConfig(), CLIPConfig(), 128)


def random_model(sizes: Sizes, device: str, dtype: torch.dtype, *, draw_on: str = "cpu", with_vae: bool = False) -> StableDiffusion:
    """A frozen model like that of `load_checkpoint`, with random weights.

    Args:
        sizes: which model.
        device, dtype: where it is used, and its compute type; the VAE is always fp32.
        draw_on: where the weights are drawn: the CPU gives every device the same ones, the device itself is quicker.
        with_vae: draw the VAE too. A step does not need it; without this its weights are on the meta device.
    """
    unet = random_unet(sizes, device, dtype, draw_on=draw_on)
    with torch.device("meta"):
        vae, clip = VAE(sizes.vae), CLIPTextEncoder(sizes.clip)
    fill(clip, torch.Generator(draw_on).manual_seed(1), device, dtype)
    if with_vae:
        fill(vae, torch.Generator(draw_on).manual_seed(2), device, torch.float32)
        vae = _in_best_format(vae, device)
    conditioner = TextConditioner({"clip_l": clip}, cast(Tokenizer, None))  # prompts come as tokens here
    schedule = NoiseSchedule.scaled_linear().to(device)
    return StableDiffusion(CheckpointFile.of_shapes(Path("random.safetensors"), {}), "SD1", unet, vae, conditioner, schedule, Epsilon())


def random_unet(sizes: Sizes, device: str, dtype: torch.dtype, *, draw_on: str = "cpu") -> UNet:
    """The UNet of `random_model` alone."""
    with torch.device("meta"):
        unet = UNet(sizes.unet)
    fill(unet, torch.Generator(draw_on).manual_seed(0), device, dtype)
    return _in_best_format(unet, device)


def _in_best_format(part: Part, device: str) -> Part:
    return part.to(memory_format=torch.channels_last) if torch.device(device).type == "cuda" else part


def fill(part: nn.Module, generator: torch.Generator, device: str, dtype: torch.dtype) -> None:
    """Freeze a part that is on the meta device, with drawn weights that keep activations near 1."""
    state = {}
    for key, meta in part.state_dict().items():
        values = torch.randn(meta.shape, generator=generator, device=generator.device)
        fan_in = math.prod(meta.shape[1:])
        values = values / math.sqrt(fan_in) if meta.ndim > 1 else values * 0.1 + key.endswith("weight")
        state[key] = values.to(device, dtype)
    part.load_state_dict(state, assign=True)
    part.requires_grad_(False).eval()


def first_vectors(sizes: Sizes, seed: int = 99) -> torch.Tensor:
    """The vectors that training starts from, [n, d]."""
    width = sizes.clip.width
    return torch.randn(NUM_VECTORS, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width)


def make_batch(sizes: Sizes, size: int, seed: int, device: str) -> Batch:
    """One batch, drawn on the CPU so that it is the same for every device.

    Args:
        size: pictures b.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (size, sizes.unet.in_channels, sizes.latents, sizes.latents)
    latents, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    timesteps = torch.randint(TRAIN_TIMESTEPS, (size,), generator=generator)
    return Batch(latents.to(device), noise.to(device), timesteps.to(device), random_prompts(sizes, size, generator, device))


def random_prompts(sizes: Sizes, size: int, generator: torch.Generator, device: str, first_row: int = 0) -> TokenizedPrompts:
    """Prompts of one chunk and random tokens, each with the vectors spliced in.

    Args:
        size: prompts b.
        generator: on the CPU.
        first_row: of the vectors, among those of all embeddings.
    """
    ids = torch.randint(sizes.clip.vocab_size, (size, sizes.clip.max_tokens), generator=generator)  # b l
    index, mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    places = slice(_FIRST_PLACE, _FIRST_PLACE + NUM_VECTORS)
    index[:, places], mask[:, places] = torch.arange(first_row, first_row + NUM_VECTORS), True
    return TokenizedPrompts(TokenBatch(ids, index, mask).to(device), None, 1)
