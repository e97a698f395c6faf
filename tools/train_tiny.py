"""Makes the tiny checkpoint: `python -m tools.train_tiny --out FOLDER [--seed N] [--device cuda]`.

Stages: `vae` (pictures to latents), `unet` (text encoder and UNet together), `export` (one LDM-layout file in fp16).
Each leaves its result in the folder, so a later stage can be run again alone with `--stage`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from textual_inversion.diffusion.vae import VAE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=("all", "vae", "unet", "export"), default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vae-steps", type=int, default=2600)
    parser.add_argument("--vae-batch", type=int, default=6)
    parser.add_argument("--unet-steps", type=int, default=4000)
    parser.add_argument("--unet-batch", type=int, default=64)
    parser.add_argument("--go-on", action="store_true", help="begin the UNet with the weights that an earlier run left in the folder")
    parser.add_argument("--pictures", type=int, default=24000, help="pictures whose latents are cached for the UNet")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage in ("all", "vae"):
        run_vae(args)
    if args.stage in ("all", "unet"):
        from tools.tiny_unet import run_unet

        run_unet(args, report)
    if args.stage in ("all", "export"):
        from tools.tiny_export import run_export

        run_export(args.out, report)


def run_vae(args: argparse.Namespace) -> None:
    """Train the VAE and leave `vae.safetensors` in the folder."""
    from tools.tiny_vae import train_vae

    vae: VAE = train_vae(args.vae_steps, args.vae_batch, args.seed, args.device, report)
    save_file({key: value.contiguous().cpu() for key, value in vae.state_dict().items()}, args.out / "vae.safetensors")


def report(line: str) -> None:
    """Print a progress line."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
