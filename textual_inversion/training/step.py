"""One training step: splice, text encoder, UNet, loss, backward, AdamW on the vectors.

Nothing here waits for the device: losses and norms stay there until the run reads them.
Legend: b batch, c channels, h w latent size, n vectors, d width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.data.batches import Batch
from textual_inversion.training.optimizer import AdamW, LossScale, clip_gradient


class TrainingStep:
    """The vectors, their optimizer and the step that moves them.

    Args:
        model: frozen; nothing in it changes.
        vectors: where training starts, [n, d]; copied to fp32 on the model's device.
        config: the settings that the step needs (accumulation, clipping, clip skip, weight decay).
    """

    def __init__(self, model: StableDiffusion, vectors: torch.Tensor, config: TrainingConfig) -> None:
        self.model, self.config = model, config
        self.vectors = vectors.detach().to(model.device, torch.float32, copy=True).requires_grad_(True)
        self.optimizer = AdamW(self.vectors, config.weight_decay)
        self.scale = LossScale(model.dtype, model.device)
        self.clip_bound = torch.ones((), device=model.device)

    def loss(self, batch: Batch) -> torch.Tensor:
        """The objective: the mean squared error of the prediction (arXiv 2112.10752, eq. 2), weighted by place, as an fp32 scalar."""
        model, schedule = self.model, self.model.schedule
        noisy = schedule.mix(batch.latents, batch.noise, batch.timesteps)
        context = model.conditioner.encode(batch.prompts, self.vectors, self.config.clip_skip)
        predicted = model.unet(noisy.to(model.dtype), batch.timesteps, context)
        target = model.prediction.target(schedule, batch.latents, batch.noise, batch.timesteps)
        if batch.weights is None:
            return F.mse_loss(predicted.float(), target)
        return ((predicted.float() - target).square() * batch.weights).mean()

    def run(self, next_batch: Callable[[], Batch], learning_rate: float, clip_bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one optimizer step over `gradient_accumulation_steps` batches.

        Returns:
            The mean loss and the norm of the unscaled, unclipped gradient: fp32 scalars on the device.
        """
        parts = self.config.gradient_accumulation_steps
        total, gradient = torch.zeros_like(self.clip_bound), torch.zeros_like(self.vectors)
        for _ in range(parts):
            loss = self.loss(next_batch())
            (part,) = torch.autograd.grad(loss * self.scale.factor, self.vectors)
            total, gradient = total + loss.detach() / parts, gradient + part / (parts * self.scale.factor)
        self.optimizer.learning_rate.fill_(learning_rate)
        self.clip_bound.fill_(clip_bound)
        self.scale.update(gradient)
        self.optimizer.step(clip_gradient(gradient, self.config.clip_mode, self.clip_bound))
        return total, torch.linalg.vector_norm(gradient)
