"""AdamW, loss scaling and clipping for the one small tensor that learns.

Everything that changes lives in tensors on the vectors' device, and a step with a non-finite gradient is skipped there, so that the
processor never waits for the device.
"""

from __future__ import annotations

import torch


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), on one tensor.

    Args:
        vectors: fp32 [n, d], changed in place.
        weight_decay: 0 or more.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self, vectors: torch.Tensor, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.vectors = vectors
        self.weight_decay, self.betas, self.eps = weight_decay, betas, eps
        self.learning_rate = torch.zeros((), device=vectors.device)
        self.steps = torch.zeros((), device=vectors.device)  # steps that were not skipped
        self.mean = torch.zeros_like(vectors)
        self.square = torch.zeros_like(vectors)

    @torch.no_grad()
    def step(self, gradient: torch.Tensor) -> None:
        """Move the vectors along `gradient` [n, d]; a gradient with NaN or infinity changes nothing."""
        beta1, beta2 = self.betas
        usable = torch.isfinite(gradient).all()
        self.steps.add_(usable)
        mean = self.mean.lerp(gradient, 1 - beta1)
        square = self.square.lerp(gradient.square(), 1 - beta2)
        # torch.pow, because `beta ** tensor` copies the number to the device in PyTorch 2.1
        corrected = mean / (1 - torch.pow(beta1, self.steps))
        spread = (square / (1 - torch.pow(beta2, self.steps))).sqrt().add_(self.eps)
        moved = self.vectors * (1 - self.learning_rate * self.weight_decay) - self.learning_rate * corrected / spread
        for tensor, new in ((self.mean, mean), (self.square, square), (self.vectors, moved)):
            tensor.copy_(torch.where(usable, new, tensor))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of the steps and of the two moments."""
        return {key: getattr(self, key).detach().clone() for key in ("steps", "mean", "square")}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a state that `state_dict` returned."""
        for key, value in state.items():
            getattr(self, key).copy_(value)


class LossScale:
    """The factor that keeps fp16 gradients from vanishing: halved after an overflow, doubled after 200 good steps. 1 for other types.

    Mixed precision after Micikevicius et al. (arXiv 1710.03740), with its state on the device.
    """

    GROW_AFTER = 200

    def __init__(self, dtype: torch.dtype, device: torch.device | str) -> None:
        self.active = dtype is torch.float16
        self.factor = torch.full((), 1024.0 if self.active else 1.0, device=device)
        self.good = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self, gradient: torch.Tensor) -> None:
        """Choose the factor of the next step by an unscaled gradient."""
        if not self.active:
            return
        usable = torch.isfinite(gradient).all()
        self.good.copy_(torch.where(usable, self.good + 1, 0.0))
        grow = self.good >= self.GROW_AFTER
        self.good.copy_(torch.where(grow, 0.0, self.good))
        self.factor.copy_(torch.where(usable, torch.where(grow, self.factor * 2, self.factor), self.factor / 2).clamp(1.0, 65536.0))


@torch.no_grad()
def clip_gradient(gradient: torch.Tensor, mode: str, bound: torch.Tensor) -> torch.Tensor:
    """Clip an unscaled gradient [n, d] by `value`, by `norm`, or not (`off`); `bound` is a scalar on its device.

    A value that is not finite stays so: the optimizer must see an overflow.
    """
    if mode == "value":
        return torch.where(torch.isfinite(gradient), torch.minimum(torch.maximum(gradient, -bound), bound), gradient)
    if mode == "norm":
        return gradient * (bound / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1.0)
    return gradient
