"""Makes the tiny SD2 and SDXL checkpoints from the tiny SD1 one: `python -m tools.tiny_siblings --family sdxl --out FOLDER`.

The text encoders begin as copies of the SD1 encoder and the UNet with its weights; then everything but the VAE is trained on the drawn
world. SDXL's UNet attends to both text encoders from the start; in some rows one of them is left out, so that each learns to say
everything. SD2's UNet predicts v.
Legend: b batch, c channels, h w latent size, l tokens, d width.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from textual_inversion.demo.world import SIZE, Scene, caption
from textual_inversion.diffusion.checkpoint import TEXT, TEXT_ENCODERS, UNET, VAE
from textual_inversion.diffusion.clip import CLIPConfig, CLIPTextEncoder, TokenBatch
from textual_inversion.diffusion.conditioning import TextConditioner, TokenizedPrompts, size_label
from textual_inversion.diffusion.model import TINY_CHECKPOINT, load_checkpoint
from textual_inversion.diffusion.noise import Epsilon, NoiseSchedule, Prediction, VPrediction
from textual_inversion.diffusion.unet import UNet, UNetConfig
from textual_inversion.diffusion.vae import SD_LATENT_SCALE
from textual_inversion.diffusion.weights.open_clip import OPEN_CLIP_MODULES
from textual_inversion.prompts.tokenizer import END, START, VOCABULARY_SIZE, default_tokenizer
from tools.tiny_unet import LENGTH, TINY_CLIP, TINY_UNET, Words, cache_pictures, random_timesteps
from tools.tiny_vae import warm_cosine

XL_SCALE = 0.13025
WIDTH = TINY_CLIP.width
_LEFT_OUT, _EMPTY = 0.1, 0.1  # chances of a row without one encoder, and without a prompt
State = dict[str, torch.Tensor]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tuple(SIBLINGS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint; its weights are written every 250 steps")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--pictures", type=int, default=6000, help="pictures whose latents are cached")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    source = load_checkpoint(TINY_CHECKPOINT, device=args.device, precision="fp32")
    scenes, latents = cache_pictures(source.vae, args.pictures, random.Random(args.seed + 1), args.device)
    print(f"{len(scenes)} pictures", flush=True)
    fit(SIBLINGS[args.family](load_file(TINY_CHECKPOINT)).to(args.device), scenes, latents, args)


@dataclass(frozen=True)
class Rows:
    """A batch of prompts.

    Attributes:
        ids: int64 [b, l].
        present: whether each text encoder says something, [b, 2].
        sizes: as SDXL is told them, [b, 6].
    """

    ids: torch.Tensor
    present: torch.Tensor
    sizes: torch.Tensor

    @classmethod
    def drawn(cls, scenes: list[Scene], rng: random.Random, device: str, pad: int) -> Rows:
        """Prompts for scenes, some of them empty."""
        texts = ["" if rng.random() < _EMPTY else caption(scene, rng) for scene in scenes]
        rows = [token_row(text, rng, pad) for text in texts], [said_by(text, rng) for text in texts], [random_sizes(rng) for _ in texts]
        return cls(*(torch.tensor(part, device=device) for part in rows))


class Sibling(nn.Module):
    """The trained modules of a family, with the weights of the tiny SD1 checkpoint where it has them."""

    file: ClassVar[str]
    encoders: ClassVar[dict[str, CLIPConfig]]
    unet_config: ClassVar[UNetConfig]
    prediction: ClassVar[Prediction] = Epsilon()
    pad: ClassVar[int] = END

    def __init__(self, sd1: State) -> None:
        super().__init__()
        text = {key[len(TEXT) :]: value.float() for key, value in sd1.items() if key.startswith(TEXT)}
        self.text = nn.ModuleDict({name: CLIPTextEncoder(config) for name, config in self.encoders.items()})
        for encoder in self.text.values():
            encoder.load_state_dict({**encoder.state_dict(), **text})
        self.unet = UNet(self.unet_config)
        state, count = self.unet.state_dict(), len(self.encoders)
        for key, value in ((key[len(UNET) :], value.float()) for key, value in sd1.items() if key.startswith(UNET)):
            reads_context = key.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
            state[key] = torch.cat([value] * count, dim=1) / count if reads_context else value.reshape(state[key].shape)
        self.unet.load_state_dict(state)
        self.conditioner = TextConditioner(dict(self.text.items()), default_tokenizer())  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, rows: Rows) -> torch.Tensor:
        """x [b, c, h, w], timesteps [b] -> the prediction [b, c, h, w]"""
        zero = torch.zeros_like(rows.ids)
        prompts = TokenizedPrompts(TokenBatch(rows.ids, zero, zero.bool()), None, 1)
        encoded = self.conditioner.encode(prompts, x.new_zeros(1, sum(self.conditioner.widths.values())))
        if encoded.pooled is None:
            return self.unet(x, timesteps, encoded.context)
        shares = rows.present.to(x.dtype).repeat_interleave(WIDTH, dim=1)  # b 2d
        return self.unet(x, timesteps, encoded.context * shares[:, None], size_label(encoded.pooled * shares[:, WIDTH:], rows.sizes))

    def tensors(self, average: State) -> State:
        """The text encoders and the VAE as the family's files name them, by averaged weights."""
        raise NotImplementedError


class SDXL(Sibling):
    """Two text encoders, a pooled vector, sizes."""

    file = "tiny-sdxl.safetensors"
    encoders: ClassVar = {
        "clip_l": replace(TINY_CLIP, fixed_layer=TINY_CLIP.layers - 1, final_norm=False),
        "clip_g": CLIPConfig(
            width=WIDTH, layers=TINY_CLIP.layers, quick_gelu=False, fixed_layer=TINY_CLIP.layers - 1, final_norm=False, projection=WIDTH
        ),
    }
    unet_config = replace(TINY_UNET, context_dim=2 * WIDTH, label_channels=WIDTH + 6 * 256)

    def __init__(self, sd1: State) -> None:
        super().__init__(sd1)
        with torch.no_grad():
            self.text["clip_g"].text_projection.copy_(torch.eye(WIDTH))
            for parameter in self.unet.label_emb[0][2].parameters():
                parameter.zero_()  # the label says nothing at first

    def tensors(self, average: State) -> State:
        """As `Sibling.tensors`."""
        first = {TEXT_ENCODERS["SDXL"]["clip_l"] + key: value for key, value in under("text.clip_l.", average).items()}
        second = open_clip_names(under("text.clip_g.", average), "conditioner.embedders.1.model.")
        return first | second | rescaled_vae(vae_of_sd1())


class SD2(Sibling):
    """OpenCLIP's text encoder, whose last layer does not count, and a UNet that predicts v."""

    file = "tiny-sd2.safetensors"
    encoders: ClassVar = {"clip_h": replace(TINY_CLIP, layers=TINY_CLIP.layers + 1, quick_gelu=False, fixed_layer=TINY_CLIP.layers)}
    unet_config = TINY_UNET
    prediction = VPrediction()
    pad = 0

    def tensors(self, average: State) -> State:
        """As `Sibling.tensors`."""
        return {"v_pred": torch.zeros(0), **open_clip_names(under("text.clip_h.", average), "cond_stage_model.model."), **vae_of_sd1()}


SIBLINGS: dict[str, Callable[[State], Sibling]] = {"sd2": SD2, "sdxl": SDXL}


def fit(model: Sibling, scenes: list[Scene], latents: torch.Tensor, args: argparse.Namespace) -> None:
    """Train with AdamW; an exponential average of the weights is written."""
    rng, schedule = random.Random(args.seed + 2), NoiseSchedule.scaled_linear().to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, 100, args.steps))
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    known = torch.zeros(VOCABULARY_SIZE, 1, device=args.device)
    known[torch.tensor(Words(default_tokenizer(), args.seed).ids, device=args.device)] = 1
    start, running = time.monotonic(), 1.0
    for step in range(1, args.steps + 1):
        chosen = [rng.randrange(len(scenes)) for _ in range(args.batch)]
        rows = Rows.drawn([scenes[row] for row in chosen], rng, args.device, model.pad)
        loss = loss_of(model, schedule, latents[torch.tensor(chosen, device=latents.device)], rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for encoder in model.conditioner.encoders.values():
            if encoder.token_table.grad is not None:
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
            write(model, average, args.out)


def loss_of(model: Sibling, schedule: NoiseSchedule, clean: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The error of the prediction, a scalar. That of the noise counts more where there is much: as in tools.tiny_unet, the noisiest steps
    teach the layout. That of v does so by itself.
    """
    noise, timesteps = torch.randn_like(clean), random_timesteps(len(clean), str(clean.device))
    target = model.prediction.target(schedule, clean, noise, timesteps)
    errors = (model(schedule.mix(clean, noise, timesteps), timesteps, rows) - target).square().mean(dim=(1, 2, 3))  # b
    return (errors if isinstance(model.prediction, VPrediction) else errors / schedule.signal[timesteps]).mean()


def token_row(text: str, rng: random.Random, pad: int) -> list[int]:
    """77 ids, `pad` behind the end; sometimes with an unknown word, so that the model learns to ignore such words."""
    tokens = default_tokenizer().encode(text)
    while rng.random() < 0.15 and tokens:
        tokens.insert(rng.randint(0, len(tokens)), rng.randrange(40000, 49000))
    row = [START, *tokens[: LENGTH - 2], END]
    return row + [pad] * (LENGTH - len(row))


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


def write(model: Sibling, average: State, folder: Path) -> None:
    """Write the checkpoint in the layout of the family's original files."""
    tensors = {"alphas_cumprod": NoiseSchedule.scaled_linear().alphas_cumprod, **model.tensors(average)}
    tensors |= {UNET + key: value for key, value in under("unet.", average).items()}
    stored = {key: value.cpu().half().contiguous() if key != "alphas_cumprod" else value for key, value in tensors.items()}
    save_file(stored, folder / model.file, metadata={"format": "pt"})


def under(prefix: str, state: State) -> State:
    """The tensors whose names begin so, by the rest of their names."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def vae_of_sd1() -> State:
    """The VAE of the tiny SD1 checkpoint."""
    return {key: value.float() for key, value in load_file(TINY_CHECKPOINT).items() if key.startswith(VAE)}


def open_clip_names(state: State, prefix: str) -> State:
    """A text encoder by OpenCLIP's names: queries, keys and values as one tensor."""
    found = {
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state.get("text_projection", torch.eye(WIDTH)),
        "logit_scale": torch.tensor(math.log(100.0)),
    }
    for part in ("weight", "bias"):
        found[f"ln_final.{part}"] = state[f"text_model.final_layer_norm.{part}"]
        for layer in {key.split(".")[3] for key in state if key.startswith("text_model.encoder.layers.")}:
            ours, theirs = f"text_model.encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
            found |= {f"{theirs}{their}.{part}": state[f"{ours}{our}.{part}"] for our, their in OPEN_CLIP_MODULES.items()}
            found[f"{theirs}attn.in_proj_{part}"] = torch.cat([state[f"{ours}self_attn.{one}_proj.{part}"] for one in "qkv"])
    return {prefix + key: value for key, value in found.items()}


def rescaled_vae(vae: State) -> State:
    """The same VAE, whose latents times SDXL's factor are what they were times SD1's."""
    factor, channels = SD_LATENT_SCALE / XL_SCALE, TINY_UNET.in_channels
    for part in ("weight", "bias"):
        vae[f"{VAE}quant_conv.{part}"][:channels] *= factor
    vae[f"{VAE}quant_conv.bias"][channels:] += 2 * math.log(factor)  # the logarithm of the variance
    vae[f"{VAE}post_quant_conv.weight"] /= factor
    return vae


if __name__ == "__main__":
    main()
