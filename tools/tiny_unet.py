"""Trains the tiny checkpoint's text encoder and UNet together on cached latents of the drawn world.

Legend: b batch, c channels, h w latent size, l tokens, d width, k words of the world.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from textual_inversion.demo.world import Scene, caption, draw, random_scene
from textual_inversion.diffusion.clip import CLIPConfig, CLIPTextEncoder, TokenBatch
from textual_inversion.diffusion.noise import TRAIN_TIMESTEPS, NoiseSchedule
from textual_inversion.diffusion.unet import UNet, UNetConfig
from textual_inversion.diffusion.vae import VAE
from textual_inversion.prompts.tokenizer import Tokenizer, default_tokenizer
from tools.tiny_vae import TINY_VAE, warm_cosine

TINY_UNET = UNetConfig(model_channels=64, channel_mult=(1, 2, 2), num_res_blocks=(1, 1, 1), transformer_depth=(0, 1, 0), context_dim=64)
TINY_CLIP = CLIPConfig(width=64, layers=4)
LENGTH = 77


class Words:
    """The words of the world: captions to compact ids, of which 0 stands for every word that the world never uses."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.cache: dict[str, list[int]] = {}
        rng = random.Random(seed)
        texts = [caption(random_scene(rng), rng) for _ in range(4000)]
        used = sorted({token for text in texts for token in tokenizer.encode(text)} | {tokenizer.start, tokenizer.end})
        self.ids = used  # compact id - 1 -> id
        self.compact = {token: index + 1 for index, token in enumerate(used)}

    def encode(self, text: str, rng: random.Random) -> list[int]:
        """77 compact ids; sometimes inserts an unknown word, so the model learns to ignore such words."""
        tokens = [self.compact.get(token, 0) for token in self.tokenizer.encode(text)]
        while rng.random() < 0.15 and tokens:
            tokens.insert(rng.randint(0, len(tokens)), 0)
        end = self.compact[self.tokenizer.end]
        row = [self.compact[self.tokenizer.start], *tokens[: LENGTH - 2]]
        return row + [end] * (LENGTH - len(row))


class TextAndImage(nn.Module):
    """The trained modules."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.clip = CLIPTextEncoder(CLIPConfig(words + 1, TINY_CLIP.width, TINY_CLIP.layers))
        self.unet = UNet(TINY_UNET).to(memory_format=torch.channels_last)
        table = self.clip.text_model.embeddings
        nn.init.normal_(table.token_embedding.weight, std=0.05)
        nn.init.normal_(table.position_embedding.weight, std=0.02)
        nn.init.zeros_(self.unet.out[2].weight)
        with torch.no_grad():
            table.token_embedding.weight[0].zero_()

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """x [b, c, h, w], timesteps [b], ids [b, l] -> noise [b, c, h, w]"""
        zero = torch.zeros_like(ids)
        context = self.clip(TokenBatch(ids, zero, zero.bool()), x.new_zeros(1, TINY_CLIP.width)).hidden
        return self.unet(x, timesteps, context)


@torch.no_grad()
def cache_pictures(vae: VAE, count: int, rng: random.Random, device: str) -> tuple[list[Scene], torch.Tensor]:
    """Scenes and their scaled latents [count, c, h, w]."""
    from tools.tiny_vae import pixels_of

    scenes = [random_scene(rng) for _ in range(count)]
    latents = []
    for start in range(0, count, 64):
        mean, _ = vae.encode_moments(pixels_of([draw(scene) for scene in scenes[start : start + 64]], device))
        latents.append(mean * vae.scale_factor)
    return scenes, torch.cat(latents)


def random_timesteps(count: int, device: str) -> torch.Tensor:
    """Draw half of the timesteps from all, half from the noisier half, which determines colour and layout."""
    low = torch.randint(0, TRAIN_TIMESTEPS, (count,), device=device)
    high = torch.randint(TRAIN_TIMESTEPS // 2, TRAIN_TIMESTEPS, (count,), device=device)
    return torch.where(torch.rand(count, device=device) < 0.5, low, high)


def run_unet(args: argparse.Namespace, report: Callable[[str], None]) -> None:
    """Train and write `unet.safetensors` (averaged weights) into the folder, also at intervals during training."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed + 1)
    vae = VAE(TINY_VAE).to(args.device, memory_format=torch.channels_last)
    vae.load_state_dict(load_file(args.out / "vae.safetensors"))
    scenes, latents = cache_pictures(vae, args.pictures, rng, args.device)
    report(f"cached {len(scenes)} pictures, latents' deviation {latents.std():.3f}")
    words = Words(default_tokenizer(), args.seed)
    model = TextAndImage(len(words.ids)).to(args.device)
    if args.go_on:
        weights = load_file(args.out / "unet.safetensors")
        model.load_state_dict({key: value for key, value in weights.items() if key != "word_ids"})
    fit(model, words, scenes, latents, args, report)


def fit(
    model: TextAndImage, words: Words, scenes: list[Scene], latents: torch.Tensor, args: argparse.Namespace, report: Callable[[str], None]
) -> None:
    """The training loop: AdamW on noise prediction, one prompt in ten empty, an exponential average of the weights kept."""
    rng, schedule = random.Random(args.seed + 2), NoiseSchedule.scaled_linear().to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, 100, args.unet_steps))
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    table, start, running = model.clip.token_table, time.monotonic(), 1.0
    for step in range(1, args.unet_steps + 1):
        rows = [rng.randrange(len(scenes)) for _ in range(args.unet_batch)]
        texts = ["" if rng.random() < 0.1 else caption(scenes[row], rng) for row in rows]
        ids = torch.tensor([words.encode(text, rng) for text in texts], device=args.device)
        clean = latents[torch.tensor(rows, device=latents.device)]
        noise, timesteps = torch.randn_like(clean), random_timesteps(len(rows), args.device)
        errors = (model(schedule.mix(clean, noise, timesteps), timesteps, ids) - noise).square().mean(dim=(1, 2, 3))  # b
        # noisy latents still show the background and the position. Only the noisiest steps teach the model to read them from the prompt.
        # There an error in the picture changes the noise little, so these steps get a larger weight
        loss = (errors / schedule.signal[timesteps]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        table.grad[0] = 0  # unknown words keep a row of zeros
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        with torch.no_grad():
            table[0] = 0
            decay = min(0.998, step / (step + 20))
            for key, value in model.state_dict().items():
                average[key].lerp_(value, 1 - decay)
        running += 0.02 * (loss.item() - running)
        if step % 50 == 0:
            report(f"unet step {step} of {args.unet_steps}, loss {running:.4f}, {(time.monotonic() - start) / step:.2f} s a step")
        if step % 500 == 0 or step == args.unet_steps:
            tensors = {key: value.contiguous().cpu() for key, value in average.items()}
            save_file({**tensors, "word_ids": torch.tensor(words.ids)}, args.out / "unet.safetensors")
