"""The WebUI's caches of encoded prompts. Knows nothing of embeddings."""

from __future__ import annotations

from modules import processing


def forget_conditioning() -> None:
    """Have every prompt be encoded again: the caches do not see that an embedding's vectors have changed."""
    first, hires = processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img
    for cache in (first.cached_c, first.cached_uc, hires.cached_hr_c, hires.cached_hr_uc):
        cache[0] = None  # what it is for, in place; a generation that is just taking the rest out still gets it
