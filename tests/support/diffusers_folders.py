"""Checkpoints of random weights as folders, written by diffusers and transformers themselves."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

State = dict[str, torch.Tensor]
#: Folder -> library and class of the part in it, as the pipelines' index has them.
PARTS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}


def save_folder(path: Path, parts: dict[str, Any], pipeline: str = "StableDiffusionPipeline") -> Path:
    """Write a folder in diffusers' layout.

    Args:
        parts: `unet`, `vae`, `text_encoder`, `scheduler` -> the object, saved by its own `save_pretrained`.
    """
    import json

    for name, part in parts.items():
        part.save_pretrained(path / name)
    index = {name: list(PARTS[name]) for name in parts}
    (path / "model_index.json").write_text(json.dumps({"_class_name": pipeline, "_diffusers_version": "0.30.0", **index}))
    return path


def copy_of_folder(target: Path) -> Path:
    """A folder with the plain tensors of `tests.support.checkpoint_kinds`."""
    shutil.copytree(_plain_folder(), target)
    return target


def rewrite_part(folder: Path, write: Callable[[State, Path], object], name: str) -> None:
    """Replace the weights of a part by what `write` makes of them, under another file name."""
    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    path.unlink()
    write({key: value.clone() for key, value in state.items()}, folder / name)


@cache
def _plain_folder() -> Path:
    from diffusers import DDIMScheduler

    from tests.support.checkpoint_kinds import CLIP_CONFIG, PLAIN, UNET_CONFIG, VAE_CONFIG
    from tests.support.references import diffusers_unet, diffusers_vae, transformers_clip
    from textual_inversion.diffusion.checkpoint import TEXT, UNET, VAE

    def under(prefix: str) -> State:
        return {key.removeprefix(prefix): value.clone() for key, value in PLAIN.items() if key.startswith(prefix)}

    parts = {
        "unet": diffusers_unet(UNET_CONFIG, under(UNET)),
        "vae": diffusers_vae(VAE_CONFIG, under(VAE)),
        "text_encoder": transformers_clip(CLIP_CONFIG, under(TEXT)),
        "scheduler": DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    }
    return save_folder(Path(tempfile.mkdtemp(prefix="diffusers-folder-")) / "plain", parts)
