"""A picture with DPM++ 2M and guidance, eager and with the UNet in a CUDA graph: from noise to pixels on the processor.

It needs neither a tokenizer nor PIL: the prompts are random tokens. Legend: b batch, c channels, h w latent size, l tokens, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu.plan import DTYPES, Plan, Row, peak, seconds_of, tell, tidy
from benchmarks.models import first_vectors, random_model, random_prompts
from textual_inversion.diffusion.conditioning import picture_sizes
from textual_inversion.diffusion.generate import GuidedDenoiser
from textual_inversion.diffusion.graphs import GraphCache
from textual_inversion.diffusion.samplers import SAMPLERS

SAMPLER, GUIDANCE = "DPM++ 2M Karras", 7.0


class Drawer:
    """Draws one picture at a time with a model of random weights."""

    def __init__(self, plan: Plan) -> None:
        sizes, self.steps = plan.timed, plan.picture_steps
        self.model = random_model(sizes, plan.device, DTYPES[plan.half], draw_on=plan.device, with_vae=True)
        prompts = random_prompts(sizes, 2, torch.Generator().manual_seed(0), plan.device)
        with torch.no_grad():
            self.prompts = self.model.conditioner.encode(prompts, first_vectors(sizes).to(plan.device))
            self.sizes = picture_sizes([(sizes.pixels, sizes.pixels)] * 2, plan.device)
        self.shape = (1, sizes.unet.in_channels, sizes.latents, sizes.latents)  # b c h w

    def denoiser(self, *, graphed: bool) -> GuidedDenoiser:
        """A new denoiser, which records its graph in its first steps."""
        denoiser = GuidedDenoiser(self.model, self.prompts, self.sizes, GUIDANCE)
        if not graphed:
            denoiser.graphs = GraphCache("cpu")  # nothing is recorded for the CPU
        return denoiser

    @torch.no_grad()
    def draw(self, denoiser: GuidedDenoiser) -> torch.Tensor:
        """A picture, uint8 [H, W, 3] on the CPU."""
        sample, sigmas_for = SAMPLERS[SAMPLER]
        sigmas = sigmas_for(self.model.schedule, self.steps)

        def noise() -> torch.Tensor:
            return torch.randn(self.shape, device=self.model.device)

        latents = sample(denoiser, noise() * sigmas[0], sigmas, noise, lambda done: None)
        pixels = self.model.vae.decode(latents.float())
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)[0].permute(1, 2, 0).cpu()


def rows(plan: Plan) -> Iterator[Row]:
    tell(f"drawing pictures of {plan.picture_steps} steps")
    drawer = Drawer(plan)
    eager = drawer.denoiser(graphed=False)
    yield _row(plan, "eager", lambda: drawer.draw(eager))
    if not plan.is_cuda:
        return
    yield _row(plan, "graph, recorded for each picture, as txt2img does", lambda: drawer.draw(drawer.denoiser(graphed=True)))
    kept = drawer.denoiser(graphed=True)
    yield _row(plan, "graph, recorded once", lambda: drawer.draw(kept)) | {"note": kept.graphs.failed}


def _row(plan: Plan, how: str, draw: Callable[[], torch.Tensor]) -> Row:
    tidy(plan)
    seconds = seconds_of(plan, draw, warm_up=1)
    row = {"what": f"picture of {plan.picture_steps} steps, {how}", "model": plan.timed.name, "precision": plan.half, "batch": "1"}
    return row | {"seconds": f"{seconds:.3f}", **peak(plan)}
