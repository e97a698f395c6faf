"""Measures a tiny checkpoint: `python -m tools.judge_tiny CHECKPOINT [--pictures 200] [--sheet PNG]`.

Asks for random scenes in plain words and counts how often each part of the prompt appears in the picture; also how often the
checker itself is right on drawn pictures, and on drawn pictures that went through the VAE.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from textual_inversion.demo.judge import look
from textual_inversion.demo.world import SIZE, Scene, caption, draw, random_scene
from textual_inversion.diffusion.generate import draw_prompts, to_pictures
from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
from textual_inversion.settings.generation import GenerationSettings

PARTS = ("colour", "background", "shape", "pattern", "position")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--drawn", type=int, default=1000, help="drawn pictures that the checker is tried on")
    args = parser.parse_args()
    model = load_checkpoint(args.checkpoint)
    rng = random.Random(args.seed)
    scenes = [random_scene(rng) for _ in range(max(args.pictures, args.drawn))]
    if args.drawn:
        drawn = [draw(scene) for scene in scenes[: args.drawn]]
        print(f"checker on {args.drawn} drawn pictures:", shares(scenes[: args.drawn], drawn))
        print("the same through the VAE:", shares(scenes[:200], through_vae(model, drawn[:200])))
    pictures = pictures_of(model, scenes[: args.pictures], args.seed)
    print(f"{args.pictures} prompts:", shares(scenes[: args.pictures], pictures))
    if args.sheet:
        contact_sheet(pictures[:60]).save(args.sheet)


def shares(scenes: list[Scene], pictures: list[Image.Image]) -> dict[str, float]:
    """Part of the prompt -> share of pictures in which it is right; `all`: every part at once."""
    right: Counter[str] = Counter()
    for scene, picture in zip(scenes, pictures):
        seen = look(picture)
        fitting = [part for part in PARTS if getattr(seen, part) == getattr(scene, part)]
        right.update(fitting)
        right["all"] += len(fitting) == len(PARTS)
    return {part: round(right[part] / len(scenes), 4) for part in (*PARTS, "all")}


@torch.no_grad()
def through_vae(model: StableDiffusion, pictures: list[Image.Image]) -> list[Image.Image]:
    """Pictures encoded and decoded."""
    done: list[Image.Image] = []
    for start in range(0, len(pictures), 20):
        stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures[start : start + 20]]))
        pixels = stacked.permute(0, 3, 1, 2).float().to(model.device) / 127.5 - 1
        mean, _ = model.vae.encode_moments(pixels)
        done += to_pictures(model.vae.decode(mean * model.vae.scale_factor))
    return done


def pictures_of(model: StableDiffusion, scenes: list[Scene], seed: int) -> list[Image.Image]:
    """One picture for each scene's caption."""
    settings = GenerationSettings(prompt="", steps=20, cfg_scale=4.0, width=SIZE, height=SIZE)
    prompts = [(caption(scene), seed + index) for index, scene in enumerate(scenes)]
    return [picture for start in range(0, len(prompts), 20) for picture in draw_prompts(model, prompts[start : start + 20], settings, {})]


def contact_sheet(pictures: list[Image.Image], columns: int = 12) -> Image.Image:
    """Pictures in rows of twelve."""
    sheet = Image.new("RGB", (columns * SIZE, -(-len(pictures) // columns) * SIZE))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * SIZE, index // columns * SIZE))
    return sheet


if __name__ == "__main__":
    main()
