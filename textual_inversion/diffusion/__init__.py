"""The frozen model: checkpoint files, UNet, VAE, text encoder, noise, samplers. Knows nothing of training or pages."""

from textual_inversion.diffusion.generate import SAMPLERS, GenerationSettings, generate
from textual_inversion.diffusion.model import TINY_CHECKPOINT, StableDiffusion, load_checkpoint

__all__ = ["SAMPLERS", "TINY_CHECKPOINT", "GenerationSettings", "StableDiffusion", "generate", "load_checkpoint"]
