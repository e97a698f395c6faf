"""Lists the pictures of a run and encodes them once, picture by picture, so that pixels never fill the memory.

Pictures are read ahead in a few threads, because reading takes longer than encoding where there is a fast device.
Legend: b batch, c channels, h w latent size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch

from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.errors import DatasetError, TrainingError
from textual_inversion.pictures.folder import find_mask
from textual_inversion.pictures.geometry import Size
from textual_inversion.pictures.parallel import in_order
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.text import counted
from textual_inversion.training.data.latents import LatentBucket, LatentMoments, LatentStore, encoder_hash
from textual_inversion.training.data.training_set import DatasetOptions, TrainingSet, none_usable, scan_training_set
from textual_inversion.training.data.views import BUCKETS, FIXED, OWN, Sizing, TrainingView
from textual_inversion.training.events import Busy, Event, Message

_THREADS = 4
_AHEAD = 8  # pictures read before they are needed
_MOST_PIXELS = 4 * 1024 * 1024  # in one pass of the encoder
Progress = Callable[[int, int], None]


class MomentsEncoder(Protocol):
    """The encoding half of a VAE."""

    @property
    def scale_factor(self) -> float:
        """Factor of latents before they enter the diffusion model."""

    @property
    def device(self) -> torch.device:
        """The device of the pixels for `encode_moments`."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the pixels for `encode_moments`."""

    def encode_moments(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels [b, 3, height, width] from -1 to 1 -> mean and clamped log variance, each [b, c, h, w], not yet scaled."""


@dataclass(frozen=True)
class Encoded:
    """A training set as latents.

    Attributes:
        buckets: one for each size, on the VAE's device, outside of autograd but usable in it.
        failed: picture (by index) -> the error because of which it is left out.
        stored: number of pictures whose latents came from the store.
    """

    buckets: tuple[LatentBucket, ...]
    failed: dict[int, DatasetError]
    stored: int = 0


def encode_set(
    vae: MomentsEncoder,
    training_set: TrainingSet,
    *,
    flip: bool,
    batch_size: int = 4,
    progress: Progress | None = None,
    store: LatentStore | None = None,
) -> Encoded:
    """Encode every view once, and its mirror image too when `flip` is on (mirroring a latent is not the same).

    Args:
        vae: encodes pixels; it is used as it is, on its own device and in its own type.
        training_set: at least one picture.
        batch_size: views in one encoding pass, 1 or more; fewer where they are large.
        progress: called with (rows done, rows in all) after each pass; an error that it raises ends the encoding.
        store: keeps the latents for the next time.

    Raises:
        DatasetError: no picture can be used, or the VAE gave values that are not finite for one.
    """
    job = _Job(vae, training_set, flip, batch_size, store)
    total = sum(len(picture.places) for picture in training_set.pictures) * job.sides
    buckets: list[LatentBucket] = []
    before = 0
    for size, chosen in training_set.sizes().items():
        bucket = _Bucket(job, size, chosen)
        with closing(bucket.fill()) as steps:
            for done in steps:
                if progress:
                    progress(before + done, total)
        before += bucket.capacity * job.sides
        if bucket.pictures:
            buckets.append(bucket.result())
    if store is not None:
        store.tidy()
    if not buckets:
        failed = [(training_set.pictures[index].path.name, str(error)) for index, error in sorted(job.failed.items())]
        raise none_usable(training_set.pictures[0].path.parent, [*failed, *training_set.skipped])
    weighted = any(bucket.weights is not None for bucket in buckets)
    if weighted:  # all buckets have weights or none has, so that a step's inputs always have the same form
        buckets = [bucket.with_weights() for bucket in buckets]
    return Encoded(tuple(buckets), job.failed, job.stored)


@dataclass(frozen=True)
class _Read:
    """A picture on its way to the encoder: its views, or its tensors from the store, and its key there."""

    key: str = ""
    views: Sequence[TrainingView] = ()
    stored: dict[str, torch.Tensor] | None = None


class _Job:
    """The encoding of a training set: the parts that all sizes share."""

    def __init__(self, vae: MomentsEncoder, training_set: TrainingSet, flip: bool, batch_size: int, store: LatentStore | None) -> None:
        self.vae, self.training_set, self.batch_size, self.store = vae, training_set, batch_size, store
        self.sides = 2 if flip else 1
        self.failed: dict[int, DatasetError] = {}
        self.stored = 0

    def read(self, index: int) -> _Read | DatasetError:
        """Read the picture `index`, or take its tensors from the store; an error is returned, so that the others go on."""
        try:
            if self.store is None:
                return _Read(views=self.training_set.views(index))
            picture, options = self.training_set.pictures[index], self.training_set.options
            mask = find_mask(picture.path) if options.weighted else None
            files = [picture.path, *([mask] if mask else [])]
            settings = [picture.size, picture.places, self.sides, options.background, options.weighted, options.whole]
            key = self.store.key(files, settings)
            stored = self.store.get(key)
            return _Read(key, stored=stored) if stored else _Read(key, self.training_set.views(index))
        except DatasetError as error:
            return error


class _Bucket:
    """Collects the latents of one size; row r is view r, row capacity + r its mirror image."""

    def __init__(self, job: _Job, size: Size, chosen: Sequence[int]) -> None:
        self.job, self.chosen = job, chosen
        self.capacity = sum(len(job.training_set.pictures[index].places) for index in chosen)
        self.per_pass = max(1, min(job.batch_size, _MOST_PIXELS // (size[0] * size[1])))
        self.pictures: list[int] = []  # of each row
        self.waiting: deque[tuple[int, TrainingView]] = deque()
        self.unsaved: deque[tuple[str, int, int]] = deque()  # key, first row, row after the last
        self.mean: torch.Tensor | None = None
        self.std: torch.Tensor | None = None
        self.weights: torch.Tensor | None = None
        self.sizes = torch.zeros(self.capacity * job.sides, 6)

    def fill(self) -> Generator[int, None, None]:
        """Read and encode everything; yields the number of rows that are done whenever there are more."""
        done = reported = 0
        with closing(in_order(self.job.read, self.chosen, _THREADS, ahead=_AHEAD)) as pictures:
            for index, picture in zip(self.chosen, pictures):
                done += self._add(index, picture)
                while len(self.waiting) >= self.per_pass:
                    done += self._encode()
                if done > reported:
                    reported = done
                    yield done * self.job.sides
        while self.waiting:
            done += self._encode()
            yield done * self.job.sides

    def result(self) -> LatentBucket:
        """The latents of the views that could be read."""
        assert self.mean is not None
        assert self.std is not None
        count = len(self.pictures)
        rows = None if count == self.capacity else [side * self.capacity + row for side in range(self.job.sides) for row in range(count)]
        mean, std, weights, sizes = self.mean, self.std, self.weights, self.sizes
        if rows is not None:
            mean, std, weights, sizes = mean[rows], std[rows], None if weights is None else weights[rows], sizes[rows]
        return LatentBucket(LatentMoments(mean, std, self.job.sides == 2), tuple(self.pictures), weights, sizes.to(mean.device))

    def _add(self, index: int, read: _Read | DatasetError) -> int:
        """Add a picture; returns how many of its views need no encoding."""
        expected = len(self.job.training_set.pictures[index].places)
        if isinstance(read, DatasetError):
            self.job.failed[index] = read
            return expected
        first = len(self.pictures)
        if read.stored is not None:
            self.job.stored += 1
            rows = range(first, first + len(read.stored["mean"]) // self.job.sides)
            self.pictures += [index] * len(rows)
            self._put(rows, read.stored["mean"], read.stored["std"])
            self._put_sizes(rows, read.stored["sizes"])
            self._put_weights(rows, read.stored.get("weight"))
            return expected
        self.pictures += [index] * len(read.views)
        self.waiting += [(first + number, view) for number, view in enumerate(read.views)]
        if read.key:
            self.unsaved.append((read.key, first, len(self.pictures)))
        return expected - len(read.views)

    def _encode(self) -> int:
        """Encode one pass of waiting views; returns their number."""
        batch = [self.waiting.popleft() for _ in range(min(self.per_pass, len(self.waiting)))]
        rows, views = [row for row, _ in batch], [view for _, view in batch]
        pixels = torch.stack([view.pixels for view in views])  # b 3 height width
        sides = [self._moments(pixels.flip(-1) if mirrored else pixels) for mirrored in range(self.job.sides)]
        self._put(rows, *(torch.cat(parts) for parts in zip(*sides)))
        self._put_sizes(rows, torch.tensor([view.sizes[side] for side in range(self.job.sides) for view in views], dtype=torch.float32))
        if any(view.weight is not None for view in views):
            ones = torch.ones(1, *sides[0][0].shape[-2:])
            self._put_weights(rows, torch.stack([ones if view.weight is None else view.weight for view in views]))
        self._save(rows[-1])
        return len(views)

    def _moments(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vae = self.job.vae
        # Not inference_mode: its tensors cannot take part in a graph later.
        with torch.no_grad():
            # in fp32 first: 127.5 steps are not exact in half precision
            mean, logvar = vae.encode_moments((pixels.to(vae.device).float() / 127.5 - 1).to(vae.dtype))
            return mean.float() * vae.scale_factor, (0.5 * logvar.float()).exp() * vae.scale_factor  # b c h w

    def _put(self, rows: Sequence[int], mean: torch.Tensor, std: torch.Tensor) -> None:
        """Keep moments of views, [views, c, h, w] or with their mirror images behind them."""
        if self.mean is None or self.std is None:
            shape = (self.capacity * self.job.sides, *mean.shape[1:])
            self.mean, self.std = (torch.empty(shape, device=self.job.vae.device) for _ in range(2))
        self._check_finite(rows, mean, std)
        both = [side * self.capacity + row for side in range(self.job.sides) for row in rows]
        self.mean[both], self.std[both] = mean.to(self.mean.device), std.to(self.std.device)

    def _put_sizes(self, rows: Sequence[int], sizes: torch.Tensor) -> None:
        """Keep sizes of views, [views, 6] or with those of their mirror images behind them."""
        self.sizes[[side * self.capacity + row for side in range(self.job.sides) for row in rows]] = sizes

    def _put_weights(self, rows: Sequence[int], weights: torch.Tensor | None) -> None:
        """Keep weights of views, [views, 1, h, w]; a mirror image has them mirrored."""
        if weights is None:
            return
        if self.weights is None:
            assert self.mean is not None
            self.weights = torch.ones_like(self.mean[:, :1])
        for side in range(self.job.sides):
            place = [side * self.capacity + row for row in rows]
            self.weights[place] = (weights.flip(-1) if side else weights).to(self.weights.device)

    def _check_finite(self, rows: Sequence[int], mean: torch.Tensor, std: torch.Tensor) -> None:
        finite = (mean.isfinite() & std.isfinite()).flatten(1).all(dim=1).tolist()
        if all(finite):
            return
        path = self.job.training_set.pictures[self.pictures[rows[finite.index(False) % len(rows)]]].path
        raise DatasetError(
            f"The VAE gave values that are not finite for {path.name}; take that picture out of the folder, or choose another checkpoint.",
            path=path,
        )

    def _save(self, last: int) -> None:
        """Store the pictures that are encoded up to row `last`."""
        while self.unsaved and self.unsaved[0][2] <= last + 1:
            key, first, end = self.unsaved.popleft()
            assert self.job.store is not None
            assert self.mean is not None
            assert self.std is not None
            rows = [side * self.capacity + row for side in range(self.job.sides) for row in range(first, end)]
            parts = {"mean": self.mean[rows], "std": self.std[rows], "sizes": self.sizes[rows]}
            if self.weights is not None:
                parts["weight"] = self.weights[first:end]
            self.job.store.put(key, parts)


class InterruptedEncodingError(Exception):
    """Ends the encoding of pictures; caught by whoever asked for it."""


@dataclass(frozen=True)
class TrainingData:
    """Encoded pictures and their captions; a picture is its index.

    Attributes:
        captions: of all pictures of the folder, also of those that turned out to be damaged.
        repeats: how often each is shown while others are shown once.
        buckets: the encoded pictures, one bucket for each size, on the model's device.
        skipped: (file name, reason) of those that are not in `buckets`.
    """

    captions: list[str]
    repeats: list[int]
    buckets: list[LatentBucket]
    skipped: tuple[tuple[str, str], ...]

    @property
    def pictures(self) -> int:
        """Number of pictures that are used for training."""
        return sum(len(set(bucket.pictures)) for bucket in self.buckets)


def dataset_options(config: TrainingConfig) -> DatasetOptions:
    """The options for a training set among the settings."""
    method = OWN if config.no_resize else BUCKETS if config.buckets else FIXED
    return DatasetOptions(
        Sizing(config.width, config.height, method, config.bucket_step, config.crops),
        word_regex=config.filename_regex,
        word_join=config.filename_join,
        background=config.background,
        weighted=config.alpha_weight,
        subfolders=config.subfolders,
        name=config.name,
    )


def list_pictures(config: TrainingConfig) -> TrainingSet:
    """The folder's pictures with their captions and sizes; see `scan_training_set` for its errors."""
    return scan_training_set(config.images, dataset_options(config))


def encode_pictures(
    config: TrainingConfig,
    model: StableDiffusion,
    listed: TrainingSet,
    listener: Callable[[Event], None],
    should_stop: Callable[[], bool],
    *,
    together: int = 4,
) -> TrainingData:
    """Encode the pictures on the model's device, so many of them together.

    Raises:
        InterruptedEncodingError: `should_stop` asked for it.
        DatasetError: none of the pictures can be used.
        TrainingError: the device ran out of memory.
    """

    def progress(done: int, total: int) -> None:
        if should_stop():
            raise InterruptedEncodingError
        if done < total:
            listener(Busy(f"Encoding picture {done + 1} of {total}"))

    count = len(listed.pictures)
    listener(Message(f"Encoding {counted(count, 'picture')}"))
    vae, store = model.vae, None
    if config.latent_cache:
        store = LatentStore(config.latent_cache, f"{encoder_hash(vae.encoder, vae.quant_conv)} {vae.scale_factor}")
    try:
        encoded = encode_set(vae, listed, flip=config.flip, batch_size=together, progress=progress, store=store)
    except torch.cuda.OutOfMemoryError as error:
        size = f"{config.width} x {config.height}"
        sentence = f"The device ran out of memory while it encoded pictures of {size} pixels; use a smaller size."
        raise TrainingError(sentence, setting="width") from error
    for problem in store.problems.values() if store else ():
        listener(Message(problem))
    if encoded.stored:
        listener(Message(f"Latents of {encoded.stored} of {counted(count, 'picture')} were there from an earlier run"))
    failed = [(listed.pictures[index].path.name, str(error)) for index, error in sorted(encoded.failed.items())]
    return TrainingData(
        [picture.caption for picture in listed.pictures],
        [picture.repeats for picture in listed.pictures],
        [bucket.to(model.device) for bucket in encoded.buckets],
        (*listed.skipped, *failed),
    )
