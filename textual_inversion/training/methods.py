"""The training methods: what moves the vectors, and where they start.

Legend: n vectors, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.optimizer import AdamW, Optimizer, PulledAdamW, SphericalAdam

_OWN_LENGTH = 1.5  # times the length of words; classic training leaves vectors longer than that


def optimizer_of(vectors: torch.Tensor, config: TrainingConfig, word_norm: float) -> Optimizer:
    """What moves the vectors [n, d] by the method of the settings.

    Args:
        word_norm: mean length of the checkpoint's own words.
    """
    if config.method == "directional":
        return SphericalAdam(vectors, config.prior)
    if config.method == "pulled":
        return PulledAdamW(vectors, _goal(vectors, word_norm * config.norm_factor), config.weight_decay)
    return AdamW(vectors, config.weight_decay)


def _goal(vectors: torch.Tensor, length: float) -> torch.Tensor:
    """The length [n, 1] that vectors are pulled to: `length`, or their own where a longer one is a part of what they mean."""
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return torch.where(norms > _OWN_LENGTH * length, norms, length)


def start_at_word_length(vectors: torch.Tensor, word_norm: float, config: TrainingConfig, *, is_new: bool) -> torch.Tensor:
    """The vectors that training starts from, except in the classic method.

    New vectors get the length that the settings ask for; those of an embedding that has been trained stay as they are. A row of zeros
    has no direction and gets one at random, from the seed.

    Args:
        vectors: fp32 [n, d].
        word_norm: mean length of the checkpoint's own words.
        is_new: the embedding was created and has had no steps.
    """
    length = word_norm * config.norm_factor
    random_rows = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(config.seed)).to(vectors.device)
    is_zero = torch.linalg.vector_norm(vectors, dim=1, keepdim=True) < 1e-6 * length  # n 1
    directions = F.normalize(torch.where(is_zero, random_rows, vectors), dim=1)
    return torch.where(is_zero | is_new, directions * length, vectors)
