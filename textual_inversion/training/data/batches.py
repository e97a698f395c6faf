"""The batches of the training steps: the order of the pictures, latents, prompts, noise and timesteps.

Legend: b batch, c channels, h w latent size, k chunks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from textual_inversion.diffusion.clip import TokenBatch
from textual_inversion.diffusion.conditioning import TextConditioner, TokenizedPrompts, VectorTable
from textual_inversion.diffusion.noise import TRAIN_TIMESTEPS
from textual_inversion.errors import ConfigError, DatasetError, PromptError
from textual_inversion.prompts.names import tag_of
from textual_inversion.prompts.templates import NAME, drop_tags, fill, shuffle_tags
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.data.latents import LatentBucket, LatentMoments, sample
from textual_inversion.training.data.timesteps import StratifiedTimesteps


class DataOrder:
    """Picture indices in batches; each epoch shows every picture once, in a new order, and a batch may span two epochs.

    Args:
        n_pictures: number of pictures, 1 or more.
        batch_size: indices in one batch, 1 or more.
        generator: a CPU generator that belongs to this object alone.

    Raises:
        DatasetError: no pictures.
        ConfigError: a batch size below 1.
    """

    def __init__(self, n_pictures: int, batch_size: int, generator: torch.Generator) -> None:
        if n_pictures < 1:
            raise DatasetError("There are no pictures to put in order; at least one is needed.")
        if batch_size < 1:
            raise ConfigError(f"Batch size is {batch_size}; it must be 1 or more.", setting="batch_size")
        self.n_pictures = n_pictures
        self.batch_size = batch_size
        self._generator = generator
        self._order: list[int] = []
        self._position = 0

    def next_batch(self) -> list[int]:
        """The next `batch_size` indices, each from 0 to `n_pictures` - 1."""
        batch = []
        for _ in range(self.batch_size):
            if self._position == len(self._order):
                self._order = torch.randperm(self.n_pictures, generator=self._generator).tolist()
                self._position = 0
            batch.append(self._order[self._position])
            self._position += 1
        return batch


class BucketOrder:
    """Batches of pictures of one size, every picture seen equally often.

    A leader, drawn in shuffled epochs over all pictures, decides whose size comes next; the batch is filled from that size's own
    shuffled epochs, which go on from batch to batch. So no picture is dropped where a size does not divide by the batch: a batch
    may span two epochs of its size and, where that has fewer pictures than a batch, show one twice. After each epoch of leaders
    every picture was shown `batch_size` times, give or take one. With one size only it is a `DataOrder`.

    Args:
        counts: number of pictures of each size, each 1 or more.
        batch_size: pictures in one batch, 1 or more.
        generator: a CPU generator that belongs to this object alone.

    Raises:
        DatasetError: no pictures.
        ConfigError: a batch size below 1.
    """

    def __init__(self, counts: Sequence[int], batch_size: int, generator: torch.Generator) -> None:
        if len(counts) < 2:
            self._leaders = None
            self._orders = [DataOrder(sum(counts), batch_size, generator)]
            return
        seeds = torch.randint(2**62, (len(counts),), generator=generator).tolist()
        self._leaders = DataOrder(sum(counts), 1, generator)
        self._sizes = [size for size, count in enumerate(counts) for _ in range(count)]
        self._orders = [DataOrder(count, batch_size, torch.Generator().manual_seed(seed)) for count, seed in zip(counts, seeds)]

    def next_batch(self) -> tuple[int, list[int]]:
        """(which size, indices among the pictures of that size)."""
        size = 0 if self._leaders is None else self._sizes[self._leaders.next_batch()[0]]
        return size, self._orders[size].next_batch()


_MOST_PROMPTS, _LONGEST = 4096, 64
_FIXED_SEED = 2**62  # no run has it
_SEEDS_APART = 2**33 + 1  # more than the difference of any two seeds that a person can give


@dataclass(frozen=True)
class Batch:
    """One forward pass.

    Attributes:
        latents: clean, scaled [b, c, h, w].
        noise: [b, c, h, w].
        timesteps: int64 [b], 0 to 999.
        prompts: tokenized, b rows of k chunks.
        weights: of each place in the loss, [b, 1, h, w]; None where all count alike.
        sizes: of the pictures and crops, [b, 6] as SDXL is told them.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    prompts: TokenizedPrompts
    weights: torch.Tensor | None = None
    sizes: torch.Tensor | None = None


class PromptMaker:
    """Makes the prompts of pictures from template lines and captions, and tokenizes them; tokenized prompts are cached."""

    def __init__(
        self, config: TrainingConfig, lines: Sequence[str], captions: Sequence[str], conditioner: TextConditioner, table: VectorTable
    ) -> None:
        self.config, self.lines, self.captions = config, lines, captions
        self.name = tag_of(config.name)
        self._tokenize = lru_cache(maxsize=4096)(lambda text, chunks: conditioner.tokenize([text], table, chunks, device="cpu"))
        self._require_name()
        # every prompt is padded to the longest that a template line and a caption make, so that shapes stay the same
        self.chunks = max(self._tokenize(text, 0).chunks for text in self._longest(sorted(set(captions))))

    def _require_name(self) -> None:
        """Refuse a template with a line that has no name, unless every caption has it.

        Raises:
            PromptError: a prompt without the name would teach nothing.
        """
        lines = [line for line in self.lines if NAME not in line]
        pairs = ((line, caption) for caption in dict.fromkeys(self.captions if lines else []) for line in lines)
        for line, caption in pairs:
            if self._names_it(fill(line, self.name, caption)):
                continue
            reason = f"The template's line {line[:60]!r} has no {NAME}, and neither has the caption {caption[:60]!r}"
            raise PromptError(
                f"{reason}; write {NAME} into one of them, where the new word goes.", path=self.config.template, setting="template"
            )

    def _longest(self, captions: Sequence[str]) -> list[str]:
        """All prompts or, where those are too many, the ones of the longest lines and captions."""
        lines = self.lines
        if len(captions) * len(lines) > _MOST_PROMPTS:
            captions = sorted(captions, key=len, reverse=True)[:_LONGEST]
            lines = sorted(lines, key=len, reverse=True)[:_LONGEST]
        return [fill(line, self.name, caption) for caption in captions for line in lines]

    def text(self, picture: int, rng: random.Random) -> str:
        """A prompt for one picture: a random template line with its caption, which may be left out, its tags dropped and shuffled."""
        config, written = self.config, self.captions[picture]
        caption = written
        if config.caption_dropout and rng.random() < config.caption_dropout:
            caption = ""
        if config.tag_dropout:
            caption = drop_tags(caption, config.tag_dropout, rng, config.keep_tags)
        if config.shuffle_tags:
            caption = shuffle_tags(caption, rng, config.keep_tags)
        line = rng.choice(self.lines)
        prompt = fill(line, self.name, caption)
        return prompt if NAME in line or self._names_it(prompt) else fill(line, self.name, written)

    def _names_it(self, prompt: str) -> bool:
        """Whether the embedding's vectors are in a prompt."""
        return bool(self._tokenize(prompt, 0).tokens.mask.any())

    def batch(self, pictures: Sequence[int], rng: random.Random) -> TokenizedPrompts:
        """Tokenized prompts for pictures, one row of chunks each, on the CPU."""
        return together([self._tokenize(self.text(picture, rng), self.chunks) for picture in pictures])


def together(rows: Sequence[TokenizedPrompts]) -> TokenizedPrompts:
    """Prompts as one batch. A shuffled caption can need one chunk more than the captions in their own order; then all get as many."""
    most = max(row.chunks for row in rows)
    if any(row.chunks < most for row in rows):
        rows = [row if row.chunks == most else _padded(row, most) for row in rows]
    tokens = TokenBatch(*(torch.cat([getattr(row.tokens, part) for row in rows]) for part in ("ids", "index", "mask")))
    if all(row.weights is None for row in rows):
        return TokenizedPrompts(tokens, None, most)
    weights = torch.cat(
        [torch.ones(row.tokens.ids.shape, device=tokens.ids.device) if row.weights is None else row.weights for row in rows]
    )
    return TokenizedPrompts(tokens, weights, most)


def _padded(prompts: TokenizedPrompts, chunks: int) -> TokenizedPrompts:
    """Repeat the last chunk of each prompt until there are `chunks`."""
    device = prompts.tokens.ids.device
    pick = torch.arange(chunks, device=device).clamp(max=prompts.chunks - 1)
    firsts = torch.arange(0, len(prompts.tokens.ids), prompts.chunks, device=device)
    places = (firsts[:, None] + pick).flatten()
    return TokenizedPrompts(prompts.tokens[places], None if prompts.weights is None else prompts.weights[places], chunks)


@dataclass(frozen=True)
class PlannedBatch:
    """What the processor chooses for a batch: which pictures, which of their views, and the prompts.

    Attributes:
        bucket: number of the bucket.
        rows: rows of its moments, b of them.
        timesteps: of the rows; empty where the device draws them.
        prompts: tokenized, on the CPU.
    """

    bucket: int
    rows: list[int]
    timesteps: list[int]
    prompts: TokenizedPrompts


class NoiseDraw(NamedTuple):
    """The random numbers of a batch.

    Attributes:
        fresh: noise of the latents, [b, c, h, w]; None where they are not sampled anew each time.
        timesteps: int64 [b]; None where they are planned.
        noise: [b, c, h, w].
    """

    fresh: torch.Tensor | None
    timesteps: torch.Tensor | None
    noise: torch.Tensor


class BatchMaker:
    """Draws batches: pictures of one size in shuffled epochs, crops, flips, prompts, noise and timesteps, from seeded streams.

    `plan` and `draw` are the two halves of `next`: what the processor chooses, and what the device draws. They use streams of their
    own, so that many batches may be planned before the first is drawn.

    Args:
        buckets: the encoded pictures, one bucket for each size; a picture is its index in `prompts.captions`.
        noise_device: where random numbers are drawn; the CPU makes runs comparable between devices, the model's device is faster.
        repeats: picture -> how often it is shown while others are shown once; empty = all alike.
        first_step: the embedding's step before this run, so that a resumed run does not repeat random numbers.
    """

    def __init__(
        self,
        config: TrainingConfig,
        buckets: Sequence[LatentBucket],
        prompts: PromptMaker,
        *,
        noise_device: torch.device | str,
        repeats: Sequence[int] = (),
        first_step: int = 0,
    ) -> None:
        self.config, self.prompts = config, prompts
        self.device, self.noise_device = buckets[0].moments.mean.device, torch.device(noise_device)
        # latents that are sampled once are the same in all runs; a resumed run draws new numbers for everything else
        self.generator = torch.Generator(self.noise_device).manual_seed(config.seed + 1)
        self._buckets = [_Bucket(self._presample(bucket.moments), bucket, repeats) for bucket in buckets]
        rows = config.batch_size * config.gradient_accumulation_steps if config.method != "classic" else 0
        self._begin(config.seed + first_step * _SEEDS_APART, rows, favours_noise=config.loss_type == "mse")

    def _begin(self, seed: int, rows: int, *, favours_noise: bool = False) -> None:
        """Begin all streams of random numbers anew; timesteps cover the whole range within so many rows, or with 0 are left to chance."""
        sizes = [len(bucket.shown) for bucket in self._buckets]
        self.order = BucketOrder(sizes, self.config.batch_size, torch.Generator().manual_seed(seed))
        self.rng = random.Random(seed)
        self.generator = torch.Generator(self.noise_device).manual_seed(seed + 2)
        self._timesteps = StratifiedTimesteps(rows, random.Random(seed + 3), favours_noise=favours_noise) if rows else None

    def fixed(self, rows: int) -> list[Batch]:
        """Batches with at least so many rows in all, to compare vectors by; the same ones whenever this is called.

        They show the pictures, prompts and sizes that training shows, with timesteps that cover the whole range, and take nothing from
        the random numbers of training.
        """
        count = -(-rows // self.config.batch_size)
        twin = copy(self)
        twin._begin(_FIXED_SEED, count * self.config.batch_size)
        return [twin.next() for _ in range(count)]

    def _normal(self, shape: Sequence[int]) -> torch.Tensor:
        return torch.randn(tuple(shape), generator=self.generator, device=self.noise_device).to(self.device)

    def _presample(self, moments: LatentMoments) -> LatentMoments:
        """Sample the latents now if they are sampled once: this halves the memory, and the steps only read them."""
        method = self.config.latent_sampling
        if method == "random":
            return moments
        mean = moments.mean
        if method == "once":
            noise = self._normal(mean.shape)
            mean = torch.addcmul(mean, moments.std, noise, out=noise)
        return LatentMoments(mean, torch.zeros(()).expand_as(mean), moments.flipped)

    def shape(self, bucket: int) -> tuple[int, ...]:
        """The latents' shape [b, c, h, w] in a batch of this bucket."""
        return (self.config.batch_size, *self._buckets[bucket].moments.mean.shape[1:])

    def plan(self) -> PlannedBatch:
        """Choose the next batch."""
        number, shown = self.order.next_batch()
        bucket = self._buckets[number]
        rows = [bucket.row(place, self.rng) for place in shown]
        prompts = self.prompts.batch([bucket.shown[place] for place in shown], self.rng)
        return PlannedBatch(number, rows, self._timesteps.next(len(rows)) if self._timesteps else [], prompts)

    def draw(self, bucket: int) -> NoiseDraw:
        """Draw the random numbers of the next batch, which is of this bucket."""
        shape = self.shape(bucket)
        fresh = self._normal(shape) if self.config.latent_sampling == "random" else None
        timesteps = None
        if self._timesteps is None:
            timesteps = torch.randint(TRAIN_TIMESTEPS, shape[:1], generator=self.generator, device=self.noise_device).to(self.device)
        return NoiseDraw(fresh, timesteps, self._normal(shape))

    def assemble(self, bucket: int, rows: torch.Tensor, timesteps: torch.Tensor, drawn: NoiseDraw, prompts: TokenizedPrompts) -> Batch:
        """Put a batch together on the moments' device.

        Args:
            rows: int64 [b] there.
            timesteps: int64 [b] there, as planned; not used where the device has drawn them.
            drawn: by `draw` for this bucket.
            prompts: on that device.
        """
        chosen = self._buckets[bucket]
        weights = None if chosen.weights is None else chosen.weights.index_select(0, rows)
        timesteps = timesteps if drawn.timesteps is None else drawn.timesteps
        sizes = None if chosen.sizes is None else chosen.sizes.index_select(0, rows)
        return Batch(sample(chosen.moments, rows, drawn.fresh), drawn.noise, timesteps, prompts, weights, sizes)

    def next(self) -> Batch:
        """Choose, draw and assemble the next batch."""
        planned = self.plan()
        rows, timesteps = (torch.tensor(each, dtype=torch.int64).to(self.device) for each in (planned.rows, planned.timesteps))
        return self.assemble(planned.bucket, rows, timesteps, self.draw(planned.bucket), planned.prompts.to(self.device))


class _Bucket:
    """The pictures of one size; `shown` holds a picture as often as it is repeated."""

    def __init__(self, moments: LatentMoments, bucket: LatentBucket, repeats: Sequence[int]) -> None:
        self.moments, self.weights, self.sizes = moments, bucket.weights, bucket.sizes
        self._views: dict[int, list[int]] = {}
        for row, picture in enumerate(bucket.pictures):
            self._views.setdefault(picture, []).append(row)
        self.shown = [picture for picture in self._views for _ in range(repeats[picture] if repeats else 1)]

    def row(self, place: int, rng: random.Random) -> int:
        """A row of the picture `shown[place]`: one of its crops, mirrored half of the time where mirror images are there."""
        views = self._views[self.shown[place]]
        view = views[0] if len(views) == 1 else rng.choice(views)
        return view + self.moments.views * (self.moments.flipped and rng.random() < 0.5)
