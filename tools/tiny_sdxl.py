"""Makes the tiny SDXL checkpoint from the tiny SD1 one: `python -m tools.tiny_sdxl --out FOLDER [--steps N] [--device cuda]`.

Both text encoders begin as copies of the SD1 encoder, and the UNet attends to both from the start; then everything but the VAE is
trained on the drawn world. In some rows one encoder is left out, so that each learns to say everything.
Legend: b batch, c channels, h w latent size, l tokens, d width, p width of the pooled vector.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from textual_inversion.demo.world import SIZE, Scene, caption
from textual_inversion.diffusion.checkpoint import OPEN_CLIP_MODULES, TEXT, TEXT_ENCODERS, UNET, VAE
from textual_inversion.diffusion.clip import CLIPConfig, CLIPTextEncoder, TokenBatch
from textual_inversion.diffusion.conditioning import Conditioning, TextConditioner, TokenizedPrompts, size_label
from textual_inversion.diffusion.model import TINY_CHECKPOINT, load_checkpoint
from textual_inversion.diffusion.noise import NoiseSchedule
from textual_inversion.diffusion.unet import UNet
from textual_inversion.diffusion.vae import SD_LATENT_SCALE
from textual_inversion.prompts.tokenizer import END, START, VOCABULARY_SIZE, default_tokenizer
from tools.tiny_unet import LENGTH, TINY_CLIP, TINY_UNET, Words, cache_pictures, random_timesteps
from tools.tiny_vae import warm_cosine

XL_SCALE = 0.13025
WIDTH = TINY_CLIP.width
FIRST = replace(TINY_CLIP, fixed_layer=TINY_CLIP.layers - 1, final_norm=False)
SECOND = CLIPConfig(
    width=WIDTH, layers=TINY_CLIP.layers, quick_gelu=False, fixed_layer=TINY_CLIP.layers - 1, final_norm=False, projection=WIDTH
)
XL_UNET = replace(TINY_UNET, context_dim=2 * WIDTH, label_channels=WIDTH + 6 * 256)
_LEFT_OUT, _EMPTY = 0.1, 0.1  # chances of a row without one encoder, and without a prompt


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint; its weights are written every 250 steps")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--pictures", type=int, default=12000, help="pictures whose latents are cached")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    source = load_checkpoint(TINY_CHECKPOINT, device=args.device, precision="fp32")
    scenes, latents = cache_pictures(source.vae, args.pictures, random.Random(args.seed + 1), args.device)
    print(f"{len(scenes)} pictures", flush=True)
    model = TinyXL(load_file(TINY_CHECKPOINT)).to(args.device)
    fit(model, scenes, latents, args)


class TinyXL(nn.Module):
    """The trained modules, with the weights of the tiny SD1 checkpoint where it has them."""

    def __init__(self, sd1: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.unet = CLIPTextEncoder(FIRST), CLIPTextEncoder(SECOND), UNet(XL_UNET)
        text = {key[len(TEXT) :]: value.float() for key, value in sd1.items() if key.startswith(TEXT)}
        self.first.load_state_dict(text)
        self.second.load_state_dict({**text, "text_projection": torch.eye(WIDTH)})
        state = self.unet.state_dict()
        for key, value in ((key[len(UNET) :], value.float()) for key, value in sd1.items() if key.startswith(UNET)):
            reads_context = key.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
            state[key] = torch.cat((value, value), dim=1) / 2 if reads_context else value.reshape(state[key].shape)
        for part in ("weight", "bias"):
            state[f"label_emb.0.2.{part}"].zero_()
        self.unet.load_state_dict(state)
        self.conditioner = TextConditioner({"clip_l": self.first, "clip_g": self.second}, default_tokenizer())

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor, present: torch.Tensor, sizes: torch.Tensor
    ) -> torch.Tensor:
        """Predict the noise.

        Args:
            x: [b, c, h, w].
            timesteps: [b].
            ids: [b, l].
            present: whether each text encoder says something, [b, 2].
            sizes: [b, 6].
        """
        zero = torch.zeros_like(ids)
        prompts = TokenizedPrompts(TokenBatch(ids, zero, zero.bool()), None, 1)
        encoded: Conditioning = self.conditioner.encode(prompts, x.new_zeros(1, 2 * WIDTH))
        assert encoded.pooled is not None
        shares = present.to(x.dtype).repeat_interleave(WIDTH, dim=1)  # b 2d
        return self.unet(x, timesteps, encoded.context * shares[:, None], size_label(encoded.pooled * shares[:, WIDTH:], sizes))


def fit(model: TinyXL, scenes: list[Scene], latents: torch.Tensor, args: argparse.Namespace) -> None:
    """Train with AdamW on the prediction of the noise; an exponential average of the weights is written."""
    rng, schedule = random.Random(args.seed + 2), NoiseSchedule.scaled_linear().to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, 100, args.steps))
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    known = torch.zeros(VOCABULARY_SIZE, 1, device=args.device)
    known[torch.tensor(Words(default_tokenizer(), args.seed).ids, device=args.device)] = 1
    start, running = time.monotonic(), 1.0
    for step in range(1, args.steps + 1):
        rows = [rng.randrange(len(scenes)) for _ in range(args.batch)]
        texts = ["" if rng.random() < _EMPTY else caption(scenes[row], rng) for row in rows]
        ids = torch.tensor([token_row(text, rng) for text in texts], device=args.device)
        present = torch.tensor([said_by(text, rng) for text in texts], device=args.device)
        sizes = torch.tensor([random_sizes(rng) for _ in rows], device=args.device)
        clean = latents[torch.tensor(rows, device=latents.device)]
        noise, timesteps = torch.randn_like(clean), random_timesteps(len(rows), args.device)
        errors = (model(schedule.mix(clean, noise, timesteps), timesteps, ids, present, sizes) - noise).square().mean(dim=(1, 2, 3))  # b
        loss = (errors / schedule.signal[timesteps]).mean()  # as in tools.tiny_unet: the noisiest steps teach the layout
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for encoder in (model.first, model.second):
            encoder.token_table.grad.mul_(known)  # unknown words keep rows of zeros
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        with torch.no_grad():
            decay = min(0.998, step / (step + 20))
            for key, value in model.state_dict().items():
                average[key].lerp_(value, 1 - decay)
        running += 0.02 * (loss.item() - running)
        if step % 50 == 0:
            print(f"step {step} of {args.steps}, loss {running:.4f}, {(time.monotonic() - start) / step:.2f} s a step", flush=True)
        if step % 250 == 0 or step == args.steps:
            write(average, args.out)


def token_row(text: str, rng: random.Random) -> list[int]:
    """77 ids; sometimes with an unknown word, so that the model learns to ignore such words."""
    tokens = default_tokenizer().encode(text)
    while rng.random() < 0.15 and tokens:
        tokens.insert(rng.randint(0, len(tokens)), rng.randrange(40000, 49000))
    row = [START, *tokens[: LENGTH - 2], END]
    return row + [END] * (LENGTH - len(row))


def said_by(text: str, rng: random.Random) -> tuple[bool, bool]:
    """Which text encoders say something; without a prompt sometimes neither, as where SDXL draws without a negative prompt."""
    chance = rng.random()
    if not text and chance < 0.7:
        return False, False
    return chance >= _LEFT_OUT, not _LEFT_OUT <= chance < 2 * _LEFT_OUT


def random_sizes(rng: random.Random) -> tuple[int, ...]:
    """Sizes that say nothing, so that the model does not depend on them."""
    side = rng.choice((SIZE, SIZE, rng.randint(SIZE // 2, 4 * SIZE)))
    return side, side, rng.choice((0, rng.randint(0, SIZE))), rng.choice((0, rng.randint(0, SIZE))), SIZE, SIZE


def write(average: dict[str, torch.Tensor], folder: Path) -> None:
    """Write `tiny-sdxl.safetensors` in the layout of the original SDXL files."""
    tensors = {"alphas_cumprod": NoiseSchedule.scaled_linear().alphas_cumprod}
    first = TEXT_ENCODERS["SDXL"]["clip_l"]
    tensors |= {first + key[6:]: value for key, value in average.items() if key.startswith("first.")}
    second = {key[7:]: value for key, value in average.items() if key.startswith("second.")}
    tensors |= {"conditioner.embedders.1.model." + key: value for key, value in open_clip_names(second).items()}
    tensors |= {UNET + key[5:]: value for key, value in average.items() if key.startswith("unet.")}
    tensors |= rescaled_vae({key: value.float() for key, value in load_file(TINY_CHECKPOINT).items() if key.startswith(VAE)})
    stored = {key: value.cpu().half().contiguous() if key != "alphas_cumprod" else value for key, value in tensors.items()}
    save_file(stored, folder / "tiny-sdxl.safetensors", metadata={"format": "pt"})


def open_clip_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A text encoder by OpenCLIP's names: queries, keys and values as one tensor."""
    found = {
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection"],
        "logit_scale": torch.tensor(math.log(100.0)),
    }
    for part in ("weight", "bias"):
        found[f"ln_final.{part}"] = state[f"text_model.final_layer_norm.{part}"]
        for layer in range(SECOND.layers):
            ours, theirs = f"text_model.encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
            found |= {f"{theirs}{their}.{part}": state[f"{ours}{our}.{part}"] for our, their in OPEN_CLIP_MODULES.items()}
            found[f"{theirs}attn.in_proj_{part}"] = torch.cat([state[f"{ours}self_attn.{one}_proj.{part}"] for one in "qkv"])
    return found


def rescaled_vae(vae: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same VAE, whose latents times SDXL's factor are what they were times SD1's."""
    factor, channels = SD_LATENT_SCALE / XL_SCALE, TINY_UNET.in_channels
    for part in ("weight", "bias"):
        vae[f"{VAE}quant_conv.{part}"][:channels] *= factor
    vae[f"{VAE}quant_conv.bias"][channels:] += 2 * math.log(factor)  # the logarithm of the variance
    vae[f"{VAE}post_quant_conv.weight"] /= factor
    return vae


if __name__ == "__main__":
    main()
