"""SDXL's UNet alone: forward, and backward to the context and the pooled vector, eager and from a CUDA graph.

Legend: b batch, c channels, h w latent size, l tokens, d width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.checks import closeness
from benchmarks.gpu.plan import DTYPES, Plan, Row, peak, seconds_of, speed, tell, tidy, yes_or_no
from benchmarks.models import random_unet
from textual_inversion.diffusion.graphs import WARM_UP, GraphCache

LEAST_COSINE, TOKENS = 0.999, 77


class Pass:
    """One forward and backward of a UNet on fixed inputs; `gradients` holds the last gradients of context and label."""

    def __init__(self, plan: Plan) -> None:
        sizes, dtype = plan.large, DTYPES[plan.half]
        self.unet = random_unet(sizes, plan.device, dtype, draw_on=plan.device)
        drawn = {"device": plan.device, "dtype": dtype}
        self.x = torch.randn(1, sizes.unet.in_channels, sizes.latents, sizes.latents, **drawn)  # b c h w
        self.timesteps = torch.full((1,), 500, device=plan.device)
        self.context = torch.randn(1, TOKENS, sizes.unet.context_dim, **drawn).requires_grad_(True)  # b l d
        self.label = torch.randn(1, sizes.unet.label_channels, **drawn).requires_grad_(True)
        self.gradients = [torch.zeros_like(self.context, dtype=torch.float32), torch.zeros_like(self.label, dtype=torch.float32)]

    def __call__(self) -> None:
        loss = self.unet(self.x, self.timesteps, self.context, self.label).float().square().mean()
        for kept, gradient in zip(self.gradients, torch.autograd.grad(loss, (self.context, self.label))):
            kept.copy_(gradient)

    def gradient(self) -> torch.Tensor:
        """A copy of both gradients, flat, on the CPU."""
        return torch.cat([each.flatten() for each in self.gradients]).cpu()


def rows(plan: Plan) -> Iterator[Row]:
    tell(f"timing {plan.large.name}")
    work, row = Pass(plan), {"model": plan.large.name, "precision": plan.half, "batch": "1"}
    tidy(plan)
    seconds = seconds_of(plan, work)
    eager = work.gradient()
    yield row | {"what": "forward and backward, eager"} | speed(plan, plan.large, seconds) | peak(plan)
    if not plan.is_cuda:
        return
    tidy(plan)
    graphs = GraphCache(plan.device)
    seconds = seconds_of(plan, lambda: graphs.run("pass", work), warm_up=WARM_UP + 1)
    cosine, _ = closeness(work.gradient(), eager)
    good, note = cosine >= LEAST_COSINE and not graphs.failed, f"no graph: {graphs.failed}" if graphs.failed else ""
    figures = speed(plan, plan.large, seconds) | peak(plan)
    yield row | {"what": "forward and backward, graph", **figures, "cosine": f"{cosine:.6f}", "ok": yes_or_no(good), "note": note}
