"""A loaded checkpoint: the frozen modules, the conditioner and the noise schedule.

Legend: b batch, c channels, h w latent size, d width.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from textual_inversion.diffusion.beside import Beside, beside_of, note_on_inputs
from textual_inversion.diffusion.checkpoint import (
    TEXT_ENCODERS,
    UNET,
    VAE,
    CheckpointFile,
    TensorReader,
    check_family,
    check_widths,
    picture_size,
)
from textual_inversion.diffusion.clip import CLIPConfig, CLIPTextEncoder
from textual_inversion.diffusion.conditioning import Conditioning, TextConditioner, size_label
from textual_inversion.diffusion.noise import TRAIN_TIMESTEPS, Epsilon, NoiseSchedule, Prediction
from textual_inversion.diffusion.parts import part_on_meta
from textual_inversion.diffusion.prediction import ends_in_noise, find_prediction
from textual_inversion.diffusion.unet import UNet, UNetConfig
from textual_inversion.diffusion.vae import SD_LATENT_SCALE, SDXL_LATENT_SCALE, VAEConfig
from textual_inversion.diffusion.vae import VAE as AutoEncoder
from textual_inversion.errors import ConfigError, UnsupportedCheckpointError
from textual_inversion.prompts.tokenizer import default_tokenizer

_TINY_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "tiny"
#: Model family -> the checkpoint in miniature that ships.
TINY_CHECKPOINTS = {
    "sd1": _TINY_FOLDER / "tiny.safetensors",
    "sd2": _TINY_FOLDER / "tiny-sd2.safetensors",
    "sdxl": _TINY_FOLDER / "tiny-sdxl.safetensors",
}
TINY_CHECKPOINT = TINY_CHECKPOINTS["sd1"]
_LEAST_SIGNAL = 4.9e-8  # A1111's value for checkpoints that end in pure noise, where sigma would be infinite
_ROUNDED = 2**-8  # relative error of values that were stored as bf16
_FULL_SIZE_CHANNELS = 320
_CLEARLY_FASTER = 0.7  # of the time in fp32
_LATENT_SCALES = {"SDXL": SDXL_LATENT_SCALE}  # family -> factor of latents, where it is another than SD1's
Module = TypeVar("Module", bound=nn.Module)


class WordSize(NamedTuple):
    """How long the words of a text encoder are.

    Attributes:
        width: values of a word.
        norm: mean length of the rows of its token table.
        encoder: which one.
    """

    width: int
    norm: float
    encoder: str = "clip_l"

    @property
    def scale(self) -> float:
        """Root of the mean square of a word's values."""
        return self.norm / self.width**0.5


@dataclass(frozen=True)
class StableDiffusion:
    """A checkpoint in memory; every weight is frozen.

    Attributes:
        file: the file that it was read from.
        family: `SD1`, `SD2` or `SDXL`.
        unet, vae: the modules. The VAE is always fp32: in fp16 it overflows on some checkpoints, and always on SDXL's.
        conditioner: prompts to hidden states, with the text encoders.
        schedule: the noise schedule, on the model's device.
        prediction: what the UNet predicts.
        notes: sentences for the user about how the file was understood.
    """

    file: CheckpointFile
    family: str
    unet: UNet
    vae: AutoEncoder
    conditioner: TextConditioner
    schedule: NoiseSchedule
    prediction: Prediction
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """File name without ending."""
        return self.file.name

    @property
    def hash(self) -> str | None:
        """First 10 hex digits of the file's sha256; None for a folder."""
        return self.file.hash

    @property
    def text_encoder(self) -> CLIPTextEncoder:
        """The text encoder; the first one of SDXL's."""
        return next(iter(self.conditioner.encoders.values()))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.conditioner.device

    @property
    def dtype(self) -> torch.dtype:
        """Compute type of UNet and text encoders."""
        return self.text_encoder.token_table.dtype

    @property
    def widths(self) -> dict[str, int]:
        """Text encoder -> width of its token table. An embedding must have the same widths."""
        return self.conditioner.widths

    @cached_property
    def words(self) -> tuple[WordSize, ...]:
        """How long the words of each text encoder are. Rows that a small checkpoint never learned are zeros and do not count."""
        sizes = []
        for name, encoder in self.conditioner.encoders.items():
            norms = torch.linalg.vector_norm(encoder.token_table.float(), dim=1)
            sizes.append(WordSize(encoder.config.width, float(norms[norms > 0.01 * norms.max()].mean()), name))
        return tuple(sizes)

    @property
    def word_norm(self) -> float:
        """Mean length of a word, of all its values for all text encoders together."""
        return math.hypot(*(size.norm for size in self.words))

    @cached_property
    def beside(self) -> Beside:
        """Adds to noisy latents what the UNet sees beside them; nothing but for inpainting and instruct-pix2pix."""
        return beside_of(self.unet.config.in_channels, self.vae)

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, prompts: Conditioning, sizes: torch.Tensor | None) -> torch.Tensor:
        """The UNet's prediction. Where it also sees a mask or a picture, `beside` adds them.

        Args:
            noisy: [b, c, h, w].
            timesteps: [b].
            sizes: [b, 6] as for `size_label`; not used by SD1 and SD2.

        Returns:
            [b, c, h, w] of the compute type
        """
        label = None
        if prompts.pooled is not None and sizes is not None:
            label = size_label(prompts.pooled, sizes)
        return self.unet(self.beside(noisy.to(self.dtype)), timesteps, prompts.context, label)

    @property
    def default_size(self) -> int:
        """Native picture side of the checkpoint in pixels."""
        return picture_size(self.family, self.unet.config.model_channels, predicts_v=self.prediction.name == "v_prediction")


def best_device() -> str:
    """`cuda` or `mps` where there is one, else `cpu`."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(name: str) -> None:
    """Check that the torch device `name` works; empty = the best device.

    Raises:
        ConfigError: no such device, or this PyTorch cannot use it.
    """
    try:
        torch.zeros(1, device=name or best_device()).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # an AssertionError where PyTorch has no CUDA at all
        reason = str(error).splitlines()[0].rstrip(".")
        message = f"The device {name!r} cannot be used ({reason}); try cpu, cuda or cuda:0, or leave it out."
        raise ConfigError(message, setting="device") from error


def compute_dtype(precision: str, device: str | torch.device, *, large: bool = False) -> torch.dtype:
    """The type for the frozen model.

    `auto` is bf16 where CUDA has it, else fp16 on CUDA. Elsewhere it is fp32, and bf16 for a large model on a processor that computes
    faster in it, which a short measurement tells.

    Args:
        large: the model has the size of a real checkpoint; small ones spend their time elsewhere.

    Raises:
        ConfigError: another word than `auto`, `fp32`, `bf16` and `fp16`.
    """
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision != "auto":
        if precision not in named:
            raise ConfigError(f"Precision is {precision!r}; it must be one of auto, {', '.join(named)}.", setting="precision")
        return named[precision]
    kind = torch.device(device).type
    if kind == "cpu" and large and cpu_is_faster_in_bf16():
        return torch.bfloat16
    if kind != "cuda":
        return torch.float32
    # not torch.cuda.is_bf16_supported, which says yes where bf16 is only emulated, and slow
    has_bf16 = bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8
    return torch.bfloat16 if has_bf16 else torch.float16


@cache
def cpu_is_faster_in_bf16() -> bool:
    """Whether the processor multiplies and convolves in bf16 clearly faster than in fp32, as those with AMX or AVX512-BF16 do."""
    seconds = {dtype: _seconds_of_a_layer(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] < _CLEARLY_FASTER * seconds[torch.float32]


@torch.no_grad()
def _seconds_of_a_layer(dtype: torch.dtype) -> float:
    """Best of three times that a small convolution and a product take."""
    generator = torch.Generator().manual_seed(0)
    maps, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in ((1, 160, 16, 16), (160, 160, 3, 3)))
    rows = torch.randn(256, 320, generator=generator).to(dtype)
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        torch.nn.functional.conv2d(maps, weight, padding=1)
        torch.nn.functional.linear(rows, rows)
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def check_half(dtype: torch.dtype, device: str | torch.device) -> None:
    """Check `dtype` on the CPU, because PyTorch before 2.3 cannot compute in fp16 there.

    Raises:
        ConfigError: the CPU cannot compute in `dtype`.
    """
    if dtype is not torch.float16 or torch.device(device).type != "cpu":
        return
    try:
        one = torch.ones(1, 1, 1, 1, dtype=dtype)
        torch.nn.functional.conv2d(one, one)
    except RuntimeError as error:
        message = f"PyTorch {torch.__version__} cannot compute in fp16 on the processor; choose precision auto or fp32."
        raise ConfigError(message, setting="precision") from error


def load_checkpoint(
    path: str | os.PathLike[str] = TINY_CHECKPOINT,
    *,
    vae: str | os.PathLike[str] | None = None,
    device: str = "",
    precision: str = "auto",
    prediction_type: str = "auto",
) -> StableDiffusion:
    """Load a checkpoint.

    Args:
        path: an SD1, SD2 or SDXL checkpoint, `.safetensors`, `.ckpt` or another file of `torch.save`, or a folder in diffusers' layout;
            the one that ships with the package by default.
        vae: a file with a VAE that replaces the checkpoint's own.
        device: torch device; empty = the best there is.
        precision: compute type of UNet and text encoders: `auto`, `fp32`, `bf16` or `fp16`.
        prediction_type: what the UNet predicts: `epsilon`, `v_prediction`, or `auto` to find out.

    Raises:
        CheckpointError: not a checkpoint, damaged, tensors missing, or weights that are not finite.
        UnsupportedCheckpointError: a family that is not handled.
        ConfigError: the precision is unknown, or the CPU cannot compute in it.
    """
    device = device or best_device()
    file = CheckpointFile.open(path)
    family = check_family(file)
    dtype = compute_dtype(precision, device, large=is_full_size(file))
    check_half(dtype, device)
    vae_file = file if vae is None else CheckpointFile.open_vae(vae)
    with file.reader() as reader, vae_file.reader() as vae_reader:
        loader = _Loader(reader, device)
        unet = loader.part(UNET, lambda shapes: UNet(UNetConfig.from_shapes(shapes)), dtype)
        scale = _LATENT_SCALES.get(family, SD_LATENT_SCALE)
        autoencoder = _Loader(vae_reader, device).part(VAE, lambda shapes: AutoEncoder(VAEConfig.from_shapes(shapes), scale), torch.float32)
        encoders = {
            name: loader.part(prefix, partial(CLIPTextEncoder.from_shapes, family, name), dtype)
            for name, prefix in TEXT_ENCODERS[family].items()
        }
        schedule, notes = _read_schedule(reader)
    schedule = schedule.to(device)
    for encoder in encoders.values():
        _check_vocabulary(file, encoder.config.vocab_size)
    sizes, pooled = [each.config.width for each in encoders.values()], max(each.config.projection for each in encoders.values())
    check_widths(file, unet.config.context_dim, unet.config.label_channels, sizes, pooled)
    if torch.device(device).type == "cuda":
        for module in (unet, autoencoder):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    conditioner = TextConditioner(encoders, default_tokenizer())
    unsure = StableDiffusion(file, family, unet, autoencoder, conditioner, schedule, Epsilon())
    prediction, note = find_prediction(unsure, prediction_type)
    notes += [sentence for sentence in (note, note_on_inputs(file.path.name, unet.config.in_channels)) if sentence]
    return replace(unsure, prediction=prediction, notes=tuple(notes))


def _check_vocabulary(file: CheckpointFile, rows: int) -> None:
    """Refuse a token table without a row for each of CLIP's tokens; rows beyond them are never looked up."""
    if rows < CLIPConfig.vocab_size:
        reason = f"{file.path.name} has a token table of {rows} rows; expected one for each of CLIP's {CLIPConfig.vocab_size} tokens"
        raise UnsupportedCheckpointError(f"{reason}. Take another checkpoint.", path=file.path)


def is_full_size(file: CheckpointFile) -> bool:
    """Whether a checkpoint has the size of a real one; the tiny ones that ship do not."""
    return file.shapes.get(f"{UNET}input_blocks.0.0.weight", (0,))[0] >= _FULL_SIZE_CHANNELS


@dataclass(frozen=True)
class _Loader:
    reader: TensorReader
    device: str

    def part(self, prefix: str, build: Callable[[Mapping[str, tuple[int, ...]]], Module], dtype: torch.dtype) -> Module:
        module = part_on_meta(self.reader.source, prefix, build)
        self.reader.fill(module, prefix, device=self.device, dtype=dtype)
        return module


def _is_rounded(alphas: torch.Tensor, schedule: NoiseSchedule) -> bool:
    """Whether numbers are those of a schedule but for the rounding of the type that they were stored in."""
    return bool(torch.isclose(alphas, schedule.alphas_cumprod, rtol=_ROUNDED, atol=0).all())


def _read_schedule(reader: TensorReader) -> tuple[NoiseSchedule, list[str]]:
    """The checkpoint's noise schedule, and sentences about it."""
    file, notes = reader.source, []
    schedule = standard = NoiseSchedule.scaled_linear()
    if file.shapes.get("alphas_cumprod") == (TRAIN_TIMESTEPS,):
        alphas = reader.tensor("alphas_cumprod").float()
        stretched = standard.with_zero_terminal_snr(_LEAST_SIGNAL)
        own = alphas.clamp(min=_LEAST_SIGNAL)
        if _is_rounded(own, stretched):
            schedule = stretched
        elif not _is_rounded(own, standard):
            if bool((own.diff() < 0).all()) and 0 < alphas[0] < 1 and alphas[-1] >= 0:
                schedule = NoiseSchedule(own)
            else:
                span = f"its alphas_cumprod runs from {float(alphas[0]):g} to {float(alphas[-1]):g}"
                notes.append(
                    f"{file.path.name} has a noise schedule that cannot be used ({span}), so Stable Diffusion's own takes its place."
                )
    if ends_in_noise(file):
        schedule = schedule.with_zero_terminal_snr(_LEAST_SIGNAL)
    return schedule, notes
