"""The training methods: what moves the vectors, and where they start.

Legend: n vectors, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from textual_inversion.diffusion.model import WordSize
from textual_inversion.settings.training import BOTH, TrainingConfig
from textual_inversion.training.optimizer import AdamW, Optimizer, OptimizerOfColumns, PulledAdamW, SphericalAdam, SplitOptimizer

_OWN_LENGTH = 1.5  # times the length of words; classic training leaves vectors longer than that


def optimizer_of(vectors: torch.Tensor, config: TrainingConfig, words: Sequence[WordSize]) -> Optimizer:
    """What moves the vectors [n, d] by the method of the settings; with several text encoders each has an optimizer of its own.

    Args:
        words: how long the checkpoint's own words are, for each text encoder.
    """
    parts = vectors.split([size.width for size in words], dim=1)
    optimizers = [_optimizer_of_columns(part, config, size.norm) for part, size in zip(parts, words)]
    if len(optimizers) == 1:
        return optimizers[0]
    # AdamW's step does not depend on the gradient's size, so it has to fit the values that it changes
    shares = [size.scale / words[0].scale if config.method == "pulled" else 1.0 for size in words]
    learns = [config.train_encoders in (BOTH, size.encoder) for size in words]
    return SplitOptimizer(vectors, optimizers, [share if learning else 0.0 for share, learning in zip(shares, learns)])


def _optimizer_of_columns(vectors: torch.Tensor, config: TrainingConfig, word_norm: float) -> OptimizerOfColumns:
    if config.method == "directional":
        return SphericalAdam(vectors, config.prior)
    if config.method == "pulled":
        return PulledAdamW(vectors, _goal(vectors, word_norm * config.norm_factor), config.weight_decay)
    return AdamW(vectors, config.weight_decay)


def _goal(vectors: torch.Tensor, length: float) -> torch.Tensor:
    """The length [n, 1] that vectors are pulled to: `length`, or their own where a longer one is a part of what they mean."""
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return torch.where(norms > _OWN_LENGTH * length, norms, length)


def start_at_word_length(vectors: torch.Tensor, words: Sequence[WordSize], config: TrainingConfig, *, is_new: bool) -> torch.Tensor:
    """The vectors that training starts from, except in the classic method.

    New vectors get the length that the settings ask for; those of an embedding that has been trained stay as they are. A row of zeros
    has no direction and gets one at random, from the seed.

    Args:
        vectors: fp32 [n, d].
        words: how long the checkpoint's own words are, for each text encoder.
        is_new: the embedding was created and has had no steps.
    """
    parts = vectors.split([size.width for size in words], dim=1)
    stays = [len(words) > 1 and config.train_encoders not in (BOTH, size.encoder) for size in words]
    return torch.cat(
        [
            part if stay else _columns_at_length(part, size.norm * config.norm_factor, config.seed, is_new)
            for part, size, stay in zip(parts, words, stays)
        ],
        dim=1,
    )


def _columns_at_length(vectors: torch.Tensor, length: float, seed: int, is_new: bool) -> torch.Tensor:
    random_rows = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed)).to(vectors.device)
    is_zero = torch.linalg.vector_norm(vectors, dim=1, keepdim=True) < 1e-6 * length  # n 1
    directions = F.normalize(torch.where(is_zero, random_rows, vectors), dim=1)
    return torch.where(is_zero | is_new, directions * length, vectors)
