"""Trains the tiny checkpoint's VAE on pictures of the drawn world.

Legend: b batch, c latent channels, h w latent size, H W picture size.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from textual_inversion.demo.world import draw, random_scene
from textual_inversion.diffusion.vae import VAE, VAEConfig

# the last level must have more than 32 channels: 32 groups of one channel each would remove every picture's mean colour
TINY_VAE = VAEConfig(base_channels=32, channel_mult=(2, 1, 1, 2), num_res_blocks=1)
SOFT_EPS = 1.0
CROP = 48  # pixels; most of the training sees parts of pictures, the last part whole ones


def pixel_batch(rng: random.Random, count: int, device: str) -> torch.Tensor:
    """Random pictures [count, 3, H, W] from -1 to 1."""
    return pixels_of([draw(random_scene(rng)) for _ in range(count)], device)


def pixels_of(pictures: list[Image.Image], device: str) -> torch.Tensor:
    """Pictures as a tensor [b, 3, H, W] from -1 to 1, channels last in memory."""
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))  # b H W 3
    return stacked.to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def loss_of(vae: VAE, pixels: torch.Tensor) -> torch.Tensor:
    """Absolute error of the reconstruction, again on 8 by 8 blocks (hue), on edges (pattern), and a little KL (smooth latents)."""
    mean, logvar = vae.encode_moments(pixels)
    decoded = vae.decode((mean + torch.randn_like(mean) * (0.5 * logvar).exp()) * vae.scale_factor)
    error = decoded - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + error.square().mean() + F.avg_pool2d(error, 8).abs().mean() + 0.5 * edges + 5e-4 * kl


def train_vae(steps: int, batch: int, seed: int, device: str, report: Callable[[str], None]) -> VAE:
    """Train for `steps` and return a VAE whose scaled latents have a standard deviation of 1 in each channel."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae = VAE(TINY_VAE).to(device, memory_format=torch.channels_last)
    prepare(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, 50, steps))
    start, running = time.monotonic(), 1.0
    for step in range(1, steps + 1):
        pixels = crop(pixel_batch(rng, batch, device), rng) if step <= steps * 0.85 else pixel_batch(rng, batch, device)
        loss = loss_of(vae, pixels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running += 0.05 * (loss.item() - running)
        if step % 100 == 0 or step == steps:
            report(f"vae step {step} of {steps}, loss {running:.4f}, {(time.monotonic() - start) / step:.2f} s a step")
    fold_soft_norms(vae)
    normalise_latents(vae, pixel_batch(rng, 256, device))
    return vae.requires_grad_(False)


@torch.no_grad()
def prepare(vae: VAE) -> None:
    """Initialize the VAE so that colour passes from the first step on.

    The skip path begins as plain averaging and copying. The norms begin and stay soft: with few channels a group, x / sqrt(var + 1e-6)
    keeps only the sign of a flat colour, x / sqrt(var + 1) also keeps its strength. `fold_soft_norms` restores an ordinary VAE.
    """
    for name, layer in vae.named_modules():
        if isinstance(layer, nn.GroupNorm):
            layer.eps = SOFT_EPS
        if not isinstance(layer, nn.Conv2d):
            continue
        nn.init.zeros_(layer.bias)
        same = range(min(layer.weight.shape[:2]))
        if "sample" in name:
            layer.weight.mul_(0.3)
            for channel in same:
                kernel = layer.weight[channel, channel]
                kernel += 1 / 9 if "down" in name else torch.eye(9, device=kernel.device)[4].view(3, 3)
        elif name.endswith(("conv2", "proj_out")):
            layer.weight.mul_(0.3)
        elif not name.endswith(("conv1", "q", "k", "v")):
            layer.weight.mul_(1.7)
    vae.quant_conv.bias[TINY_VAE.latent_channels :] -= 5  # little noise at first, so the signal is learnable


@torch.no_grad()
def fold_soft_norms(vae: VAE) -> None:
    """Scale down the inputs of the norms until the usual eps of 1e-6 acts like `SOFT_EPS`. The function stays the same."""
    scale = (1e-6 / SOFT_EPS) ** 0.5
    for name, layer in vae.named_modules():
        if isinstance(layer, nn.GroupNorm):
            layer.eps = 1e-6
        elif name.endswith(("conv_in", "conv1", "conv2", "proj_out")):
            layer.weight.mul_(scale)
            layer.bias.mul_(scale)
        elif ("sample" in name and isinstance(layer, nn.Conv2d)) or name.endswith("nin_shortcut"):
            layer.bias.mul_(scale)


def crop(pixels: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The same part [b, 3, CROP, CROP] of each picture [b, 3, H, W]."""
    top, left = (rng.randint(0, pixels.shape[-1] - CROP) for _ in range(2))
    return pixels[:, :, top : top + CROP, left : left + CROP].contiguous(memory_format=torch.channels_last)


def warm_cosine(step: int, warm: int, steps: int) -> float:
    """Learning-rate factor: linear to 1 over `warm` steps, then half a cosine to 0.02 at the end."""
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


@torch.no_grad()
def normalise_latents(vae: VAE, pixels: torch.Tensor) -> None:
    """Adjust the 1x1 convolutions so that the scaled latents of `pixels` have mean 0 and standard deviation 1."""
    means = torch.cat([vae.encode_moments(part)[0] for part in pixels.split(32)])  # b c h w
    centre, spread = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    gain = 1.0 / (vae.scale_factor * spread)
    c = len(gain)
    post = vae.post_quant_conv
    post.bias.add_(post.weight[:, :, 0, 0] @ centre)
    post.weight.div_(gain[None, :, None, None])
    vae.quant_conv.weight[:c].mul_(gain[:, None, None, None])
    vae.quant_conv.bias[:c].sub_(centre).mul_(gain)
    vae.quant_conv.bias[c:].add_(2 * gain.log())
