"""Draws pictures from prompts with classifier-free guidance.

Legend: b batch, c channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from textual_inversion.diffusion.conditioning import Conditioning, picture_sizes
from textual_inversion.diffusion.graphs import GraphCache
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.diffusion.samplers import SAMPLERS, TWO_CALLS
from textual_inversion.embedding import Embedding
from textual_inversion.prompts.chunks import chunk_prompt
from textual_inversion.prompts.names import names_in, rewrite_names
from textual_inversion.prompts.schedule import schedule, subprompts
from textual_inversion.settings.generation import GenerationSettings

if TYPE_CHECKING:
    from PIL import Image

_PIXELS_AT_ONCE = 512 * 512  # a larger batch is hardly faster, and needs memory that many devices lack


class Interrupted(Exception):
    """Raised inside a sampler when the caller stops the run; this module always catches it."""


def generate(
    model: StableDiffusion,
    settings: GenerationSettings,
    embeddings: Mapping[str, Embedding],
    *,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    hash_of: Callable[[str], str] = lambda name: "",
) -> list[Image.Image]:
    """Draw `settings.count` pictures in batches of about 512 x 512 pixels in total.

    The pictures' `info["parameters"]` says how each was made, in the format that WebUIs read back.

    Args:
        model: a loaded checkpoint.
        embeddings: name -> embedding, for all names that prompts may contain. Only the names in the prompts are looked up.
        progress: called with steps done and steps in all, each counted once for every picture.
        should_stop: called after each step; when it returns True, only finished pictures are returned.
        hash_of: name of an embedding -> its hash in the parameters; empty = it is left out.

    Raises:
        EmbeddingError: an embedding that the checkpoint cannot take.
    """
    prompts = [(settings.prompt, (settings.seed + index) % 2**32) for index in range(settings.count)]
    at_once = max(1, _PIXELS_AT_ONCE // (settings.width * settings.height * len(subprompts(settings.prompt))))
    parts = [prompts[begin : begin + at_once] for begin in range(0, len(prompts), at_once)]
    pictures: list[Image.Image] = []

    def tell(done: int, total: int) -> None:
        if progress:
            progress(len(pictures) * total + done * len(part), len(prompts) * total)

    hashing = ThreadPoolExecutor(1, "textual-inversion-hash")  # reading a large checkpoint takes seconds, which drawing need not wait for
    checkpoint_hash = hashing.submit(lambda: model.hash)
    hashing.shutdown(wait=False)
    for part in parts:
        drawn = draw_prompts(model, part, settings, embeddings, progress=tell, should_stop=should_stop)
        if not drawn:
            break
        pictures += drawn
    hashes = {name: short for name in _used(model, settings, embeddings) if (short := hash_of(name))}
    listed = ", ".join(f"{name}: {short}" for name, short in hashes.items())
    known_hash = None if isinstance(checkpoint_hash.exception(), OSError) else checkpoint_hash.result()
    origin = [f"Model hash: {known_hash}"] if known_hash else []
    origin += [f"Model: {model.name}", *([f'TI hashes: "{listed}"'] if hashes else [])]
    for picture, (_, seed) in zip(pictures, prompts):
        picture.info["parameters"] = _infotext(settings, seed, origin)
    return pictures


def _used(model: StableDiffusion, settings: GenerationSettings, embeddings: Mapping[str, Embedding]) -> list[str]:
    """The embeddings whose vectors are in the prompts, at any step."""
    plan = _Plan.of([settings.prompt], settings, embeddings)
    sizes = {name: embeddings[name].num_vectors for name in names_in(plan.texts, embeddings)}
    chunks = [chunk for text in plan.texts for chunk in chunk_prompt(text, model.conditioner.tokenizer, sizes)]
    return list(dict.fromkeys(splice.name for chunk in chunks for splice in chunk.splices))


def _infotext(settings: GenerationSettings, seed: int, origin: Sequence[str]) -> str:
    """The generation parameters of a picture, in A1111's format.

    Args:
        origin: what is said of the checkpoint and of the embeddings.
    """
    negative = f"\nNegative prompt: {settings.negative_prompt}" if settings.negative_prompt else ""
    facts = [f"Steps: {settings.steps}", f"Sampler: {settings.sampler}", f"CFG scale: {settings.cfg_scale:g}", f"Seed: {seed}"]
    facts += [f"Size: {settings.width}x{settings.height}", *([f"Clip skip: {settings.clip_skip}"] if settings.clip_skip > 1 else [])]
    return f"{settings.prompt}{negative}\n{', '.join([*facts, *origin])}"


@torch.no_grad()
def draw_prompts(
    model: StableDiffusion,
    prompts: Sequence[tuple[str, int]],
    settings: GenerationSettings,
    embeddings: Mapping[str, Embedding],
    *,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Image.Image]:
    """Draw one picture for each (prompt, seed) in one batch. Like `generate`, but ignores prompt, seed and count of `settings`."""
    conditioner = model.conditioner
    plan = _Plan.of([prompt for prompt, _ in prompts], settings, embeddings)
    named = {name: embeddings[name] for name in names_in(plan.texts, embeddings)}
    table = conditioner.table_of(named)
    encoded = conditioner.encode(conditioner.tokenize(plan.texts, table), table.vectors, settings.clip_skip)
    if model.family == "SDXL" and not settings.negative_prompt:  # as A1111 and diffusers do
        encoded = encoded.with_zeros(1)
    noise = _NoiseSource(model, [seed for _, seed in prompts], settings)
    sample, sigmas_for = SAMPLERS[settings.sampler]
    sigmas = sigmas_for(model.schedule, settings.steps)

    def after_step(done: int) -> None:
        if progress:
            progress(done, settings.steps)
        if should_stop and should_stop():
            raise Interrupted

    sizes = picture_sizes([(settings.width, settings.height)] * len(plan.rows), model.device)
    denoise = GuidedDenoiser(model, plan.at(encoded, 0), sizes, settings.cfg_scale, plan.parts, lambda call: plan.change(encoded, call))
    # the first noise level carries a little of the picture: A1111 and k-diffusion start from sigma alone
    try:
        latents = sample(denoise, noise() * sigmas[0], sigmas, noise, after_step)
    except Interrupted:
        return []
    return [picture for latent in latents.split(4) for picture in to_pictures(model.vae.decode(latent.float()))]


@dataclass(frozen=True)
class _Plan:
    """Which texts guide the pictures at which call of the UNet, as A1111 has it.

    Attributes:
        texts: all of them, the first negative prompt first.
        rows: for each row of the batch, the negative prompts of the b pictures and then the prompts that `AND` has joined:
            (last call, place in `texts`), by rising call.
        parts: (picture, weight) of each row behind the first b.
    """

    texts: list[str]
    rows: list[list[tuple[int, int]]]
    parts: list[tuple[int, float]]

    @classmethod
    def of(cls, prompts: Sequence[str], settings: GenerationSettings, embeddings: Mapping[str, Embedding]) -> _Plan:
        """The plan for b pictures with the negative prompt of `settings`."""
        calls = settings.steps * (2 if settings.sampler in TWO_CALLS else 1)
        names = names_in([settings.negative_prompt, *prompts], embeddings)
        joined = [(picture, one) for picture, prompt in enumerate(prompts) for one in subprompts(rewrite_names(prompt, names))]
        negative = rewrite_names(settings.negative_prompt, names)
        schedules = [schedule(text, calls) for text in [*[negative] * len(prompts), *(one.text for _, one in joined)]]
        places: dict[tuple[bool, str], int] = {}  # an empty negative prompt is another thing to SDXL than an empty prompt
        rows = [
            [(last, places.setdefault((row < len(prompts), text), len(places))) for last, text in each]
            for row, each in enumerate(schedules)
        ]
        return cls([text for _, text in places], rows, [(picture, one.weight) for picture, one in joined])

    def at(self, encoded: Conditioning, call: int) -> Conditioning:
        """What guides the pictures in a call of the UNet, counted from 0.

        Args:
            encoded: of all texts.
        """
        places = self._places(call)
        return Conditioning(encoded.context[places], None if encoded.pooled is None else encoded.pooled[places])

    def change(self, encoded: Conditioning, call: int) -> Conditioning | None:
        """The same; None where it is what guided the call before."""
        return None if self._places(call) == self._places(call - 1) else self.at(encoded, call)

    def _places(self, call: int) -> list[int]:
        """A1111 counts calls from 0 and steps of a prompt from 1, so that the first text lasts one call longer."""
        return [next((place for last, place in row if call <= last), row[0][1]) for row in self.rows]


class GuidedDenoiser:
    """Estimates the clean latents with classifier-free guidance (arXiv 2207.12598); on CUDA the UNet runs from a graph.

    Several prompts for a picture are composed as in arXiv 2206.01714.

    Args:
        prompts: b + m rows, the b negative prompts, then the prompts.
        sizes: of the pictures, [b + m, 6] as for `size_label`.
        parts: (picture, weight) of each of the m prompts; None = one for each picture.
        changed: number of a call -> the prompts from there on; None where they stay.
    """

    def __init__(
        self,
        model: StableDiffusion,
        prompts: Conditioning,
        sizes: torch.Tensor,
        scale: float,
        parts: Sequence[tuple[int, float]] | None = None,
        changed: Callable[[int], Conditioning | None] = lambda call: None,
    ) -> None:
        rows = len(prompts.context)
        parts = [(picture, 1.0) for picture in range(rows // 2)] if parts is None else parts
        self.model, self.sizes, self.scale = model, sizes, scale
        self.prompts = Conditioning(prompts.context.clone(), None if prompts.pooled is None else prompts.pooled.clone())
        self.graphs = GraphCache(model.device)
        self._changed, self._calls = changed, 0
        self._count = rows - len(parts)  # b
        self._owners = torch.tensor([picture for picture, _ in parts], device=model.device)  # m
        self._weights = torch.tensor([weight for _, weight in parts], device=model.device)[:, None, None, None]  # m 1 1 1
        self._sources = torch.cat((torch.arange(self._count, device=model.device), self._owners))  # b+m
        self._timesteps = torch.zeros(rows, device=model.device)
        self._input: torch.Tensor | None = None  # b+m c h w; a graph reads and writes the same tensors each time
        self._output: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """x = picture + sigma * noise [b, c, h, w] -> picture [b, c, h, w], fp32"""
        model = self.model
        self._follow()
        noise_level = torch.full((), sigma, device=x.device)
        scaled = (x / (noise_level**2 + 1).sqrt()).to(model.dtype)
        if self._input is None or self._output is None:
            self._input = scaled[self._sources]
            self._output = torch.zeros_like(self._input, dtype=torch.float32)
        torch.index_select(scaled, 0, self._sources, out=self._input)
        self._timesteps.copy_(model.schedule.timestep_of(noise_level).expand(len(self._timesteps)))
        self.graphs.run("unet", self._predict)
        negative, positive = self._output[: self._count], self._output[self._count :]
        steps = (self._weights * self.scale) * (positive - negative[self._owners])
        return model.prediction.denoised(x, negative.index_add(0, self._owners, steps), noise_level)

    def _follow(self) -> None:
        """Put the prompts of this call where the graph reads them."""
        now = self._changed(self._calls) if self._calls else None
        self._calls += 1
        if now is not None:
            self.prompts.context.copy_(now.context)
            if self.prompts.pooled is not None and now.pooled is not None:
                self.prompts.pooled.copy_(now.pooled)

    def _predict(self) -> None:
        assert self._input is not None
        assert self._output is not None
        self._output.copy_(self.model.predict(self._input, self._timesteps, self.prompts, self.sizes))


class _NoiseSource:
    """Draws noise on the CPU with one generator for each picture, so devices and batch sizes give the same noise."""

    def __init__(self, model: StableDiffusion, seeds: Sequence[int], settings: GenerationSettings) -> None:
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        scale = model.vae.config.downscale
        self.shape = (model.vae.config.latent_channels, settings.height // scale, settings.width // scale)
        self.device = model.device

    def __call__(self) -> torch.Tensor:
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators]).to(self.device)


def to_pictures(pixels: torch.Tensor) -> list[Image.Image]:
    """[b, 3, H, W] from -1 to 1 -> b RGB pictures."""
    from PIL import Image  # here, so that the model and the training step need torch and safetensors only

    whole = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in whole]
