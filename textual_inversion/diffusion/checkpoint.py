"""Checkpoints in the LDM layout, whatever they are stored as. The tensor shapes give the sizes and the model family."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from textual_inversion.diffusion.beside import INPUT_KINDS, LATENTS
from textual_inversion.diffusion.parts import check_shapes
from textual_inversion.diffusion.weights.diffusers_folder import is_diffusers_folder, open_folder, vae_alone
from textual_inversion.diffusion.weights.families import foreign_family
from textual_inversion.diffusion.weights.open_clip import Stored, open_clip_places
from textual_inversion.diffusion.weights.places import OpenWeights, Weights, stamp_of
from textual_inversion.diffusion.weights.single_file import open_single_file
from textual_inversion.diffusion.weights.strangers import not_a_checkpoint
from textual_inversion.diffusion.weights.tensor_files import ENDINGS, TensorFile
from textual_inversion.errors import CheckpointError, UnsupportedCheckpointError
from textual_inversion.files import FileStamp, sha256_of

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
_TABLE = "text_model.embeddings.token_embedding.weight"
#: Tensors with the token tables of SD1, SD2 and SDXL, by preference -> their text encoders.
_TOKEN_TABLES = {
    "conditioner.embedders.0.transformer." + _TABLE: "clip_l",
    "conditioner.embedders.1.model.token_embedding.weight": "clip_g",
    "cond_stage_model.model.token_embedding.weight": "clip_h",
    TEXT + _TABLE: "clip_l",
}
TOKENS = 49408  # of CLIP's vocabulary
# the first SD1 files were written before transformers put `text_model.` in front of these
_OLD_TEXT = tuple(TEXT + part for part in ("embeddings.", "encoder.", "final_layer_norm."))
_XL_FIRST, _XL_SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.transformer."
#: Family -> each of its text encoders, and the prefix of its tensors by transformers' names.
TEXT_ENCODERS = {"SD1": {"clip_l": TEXT}, "SD2": {"clip_h": TEXT}, "SDXL": {"clip_l": _XL_FIRST, "clip_g": _XL_SECOND}}
_OPEN_CLIP = "cond_stage_model.model."  # SD2's text encoder, in OpenCLIP's own layout
#: Prefixes of text encoders in that layout -> those by transformers' names.
_OPEN_CLIP_PREFIXES = {_OPEN_CLIP: TEXT, "conditioner.embedders.1.model.": _XL_SECOND}


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint file, or a folder in diffusers' layout, and the shapes in it; weights are read on demand.

    Attributes:
        path: the file or the folder.
        shapes: tensor name -> shape; names are those of today's layout.
        weights: reads the tensors, under the names of the LDM layout.
        stored: tensor name -> its place in the weights, where the layout there is another.
        metadata: what programs have written into the header, or what the folder's settings say.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    weights: Weights
    stored: dict[str, Stored] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> CheckpointFile:
        """Read the header of a `.safetensors` file, of a file of `torch.save`, or of the files of a folder in diffusers' layout.

        Raises:
            CheckpointError: no such file, another kind of file, or a damaged one.
            UnsupportedCheckpointError: a kind of weights, or of model, that is not handled.
        """
        path = Path(path)
        if not path.exists():
            reason = f"There is no checkpoint file {path}; give the path of one, or of a folder in diffusers' layout."
            raise CheckpointError(reason, path=path)
        return cls._of(open_folder(path) if path.is_dir() else open_single_file(path))

    @classmethod
    def of_shapes(cls, path: Path, shapes: dict[str, tuple[int, ...]]) -> CheckpointFile:
        """A checkpoint of which only the shapes are known. Only tests and benchmarks make one, to estimate what it would cost."""
        return cls(path, shapes, Weights(path, TensorFile(path, {}), {}))

    @classmethod
    def _of(cls, weights: Weights) -> CheckpointFile:
        shapes = weights.shapes()
        stored = {TEXT + "text_model." + key[len(TEXT) :]: Stored(key) for key in shapes if key.startswith(_OLD_TEXT)}
        renamed = {key: shapes.pop(place.name) for key, place in stored.items()}
        places = (open_clip_places(shapes, theirs, ours) for theirs, ours in _OPEN_CLIP_PREFIXES.items())
        for key, place in (each for found in places for each in found.items()):
            rows, *rest = shapes[place.name]
            stored[key], renamed[key] = place, (rows if place.third is None else rows // 3, *rest)
        return cls(weights.path, shapes | renamed, weights, stored, weights.metadata)

    @classmethod
    def open_vae(cls, path: str | os.PathLike[str]) -> CheckpointFile:
        """Read the header of a VAE file, or of a checkpoint that contains a VAE.

        Raises:
            CheckpointError: as `open`, or the file has no VAE.
        """
        file = cls.open(path)
        if (alone := vae_alone(file.weights)) is not None:
            return cls._of(alone)
        if file.under(VAE):
            return file
        if "encoder.conv_in.weight" not in file.shapes:
            sample = ", ".join(sorted(file.shapes)[:3]) or "nothing"
            raise CheckpointError(
                f"{file.path.name} is no VAE: it holds {sample}; expected encoder.conv_in.weight; choose another VAE.", path=file.path
            )
        return replace(
            file, shapes={VAE + key: shape for key, shape in file.shapes.items()}, stored={VAE + key: Stored(key) for key in file.shapes}
        )

    @property
    def name(self) -> str:
        """File name without ending, as the WebUIs show it; of a folder its whole name."""
        return name_of(self.path)

    @property
    def input_channels(self) -> int:
        """Channels of the UNet's input: 4, or more where it sees a mask or a picture too; 0 where its first tensor has none."""
        return (*self.shapes.get(UNET + "input_blocks.0.0.weight", (0, LATENTS)), 0, 0)[1]

    @cached_property
    def hash(self) -> str | None:
        """First 10 hex digits of the file's sha256, as A1111 shows it. Reads the whole file, and again only when the file changes.

        None for a folder, because no other program has a hash for one.

        Raises:
            OSError: the file cannot be read.
        """
        return None if self.path.is_dir() else _hash(self.path, FileStamp.of(self.path))

    def under(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors whose names start with `prefix`, by the rest of the name."""
        return {key[len(prefix) :]: shape for key, shape in self.shapes.items() if key.startswith(prefix)}

    @contextmanager
    def reader(self) -> Iterator[TensorReader]:
        """Open the file for reading tensors; they are read one at a time, not loaded at once.

        Raises:
            CheckpointError: the file is cut off, or its header contradicts itself.
        """
        with self.weights.opened() as opened:
            yield TensorReader(self, opened)


def name_of(path: Path) -> str:
    """The name of a checkpoint: its file name without ending; of a folder its whole name."""
    return path.name if path.is_dir() else path.stem


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoint files and the folders in diffusers' layout in a folder, by the alphabet; of files that differ in their ending only,
    the one that other programs take first comes first."""
    found = [path for path in folder.glob("*") if path.suffix.lower() in ENDINGS or (path.is_dir() and is_diffusers_folder(path))]
    rank = {ending: index for index, ending in enumerate(ENDINGS)}
    return sorted(found, key=lambda path: (name_of(path).lower(), rank.get(path.suffix.lower(), len(rank))))


@lru_cache(maxsize=64)
def _hash(path: Path, _stamp: FileStamp | None) -> str:
    return sha256_of(path)[:10]


@dataclass(frozen=True)
class TensorReader:
    """Tensors of an open checkpoint file."""

    source: CheckpointFile
    file: OpenWeights

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor called `name`, as stored; raises `CheckpointError` where it cannot be read."""
        stored, third = self.source.stored.get(name, Stored(name))
        tensor = self.file.get_tensor(stored)
        return tensor if third is None else tensor.chunk(3)[third]

    def fill(self, module: nn.Module, prefix: str, *, device: torch.device | str, dtype: torch.dtype) -> None:
        """Load frozen weights into a module on the meta device. Ignores other tensors under `prefix`.

        Raises:
            CheckpointError: tensors are missing or have another shape; the error lists their keys.
        """
        wanted = check_shapes(self.source, module, prefix)
        state = {key: self._weight(prefix + key, shape, device, dtype) for key, shape in wanted.items()}
        module.load_state_dict(state, strict=True, assign=True)
        module.requires_grad_(False).eval()

    def _weight(self, name: str, shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
        tensor = self.tensor(name).reshape(shape)
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            advice = "quantized checkpoints cannot be trained on, so take one in fp16 or fp32"
            raise UnsupportedCheckpointError(f"{self.source.path.name} stores {name} as {kind}; {advice}.", path=self.source.path)
        # copy always: without a copy, a tensor of the right type would keep the file mapped
        weight = tensor.to(device=device, dtype=dtype, copy=True)
        # the sum first: it takes a tenth of the time, and is finite in every good checkpoint
        if not bool(weight.sum(dtype=torch.float32).isfinite()) and not bool(torch.isfinite(weight).all()):
            kind = str(dtype).removeprefix("torch.")
            reason = f"{self.source.path.name} holds values in {name} that are no finite numbers in {kind}, so every picture would be black"
            advice = "download it again or take another" if dtype == torch.float32 else "try the precision fp32, or take another checkpoint"
            raise CheckpointError(f"{reason}; {advice}.", path=self.source.path)
        return weight


def check_family(file: CheckpointFile) -> str:
    """The family of a supported checkpoint: `SD1`, `SD2` or `SDXL`.

    Raises:
        UnsupportedCheckpointError: SDXL's refiner, SD3, Flux, quantized, depth, upscaler or unCLIP.
        CheckpointError: only a part of a checkpoint, or no Stable Diffusion checkpoint at all.
    """
    keys = file.shapes
    name = file.path.name
    _check_native(file)
    family = _family_of(file)
    parts = {"UNet": UNET, "VAE": VAE, **_names_of(TEXT_ENCODERS[family])}
    missing = [part for part, prefix in parts.items() if not file.under(prefix)]
    if len(missing) == len(parts):
        raise not_a_checkpoint(file.path, file.weights.keys, f"{UNET}…")
    if missing:
        raise CheckpointError(
            f"{name} has no {' and no '.join(missing)}; a whole checkpoint with UNet, VAE and text encoder is needed.", path=file.path
        )
    if (count := file.input_channels) not in INPUT_KINDS:
        found = f"{name} has a UNet for {count or 'no'} channels, as depth checkpoints and upscalers do"
        expected = "expected 4, 8 (instruct-pix2pix) or 9 (inpainting), so choose another checkpoint"
        raise UnsupportedCheckpointError(f"{found}; {expected}.", path=file.path)
    if family != "SDXL" and any(key.startswith(UNET + "label_emb.") for key in keys):
        raise UnsupportedCheckpointError(
            f"{name} has a UNet that wants more than text, as unCLIP checkpoints do; choose another checkpoint.", path=file.path
        )
    return family


def _family_of(file: CheckpointFile) -> str:
    """The family by the text encoders; SD1 where there is none."""
    if file.under("conditioner.embedders."):
        return "SDXL"
    return "SD2" if any(key.startswith(_OPEN_CLIP) for key in file.shapes) else "SD1"


def check_widths(file: CheckpointFile, context: int, label: int, widths: Sequence[int], pooled: int) -> None:
    """Refuse a UNet that was not made for the text encoders beside it.

    Args:
        context, label: widths of the UNet's inputs.
        widths: of the text encoders.
        pooled: width of the pooled vector; 0 = none.

    Raises:
        CheckpointError: they do not fit.
    """
    expected = pooled + 6 * 256 if pooled else 0
    if context != sum(widths) or label != expected:
        found = f"a UNet for a context of {context} and a label of {label} values"
        reason = f"{file.path.name} has {found}; its text encoders make {sum(widths)} and {expected}"
        raise CheckpointError(f"{reason}. Take another.", path=file.path)


def _names_of(encoders: Mapping[str, str]) -> dict[str, str]:
    """Words for text encoders -> their prefixes."""
    return {"text encoder" if len(encoders) == 1 else f"text encoder {encoder}": prefix for encoder, prefix in encoders.items()}


def _check_native(file: CheckpointFile) -> None:
    if kind := foreign_family((*file.shapes, *file.weights.keys)):
        raise UnsupportedCheckpointError(
            f"{file.path.name} {kind}, which is not handled; choose an SD1, SD2 or SDXL checkpoint.", path=file.path
        )


def token_tables(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Text encoder -> its token table [l, d] as stored, of an SD1, SD2 or SDXL checkpoint; maps only these tables from the disk.

    Raises:
        UnsupportedCheckpointError: SD3, Flux or quantized.
        CheckpointError: no checkpoint file, none of its tensors is a token table, or one is of another shape or quantized.
    """
    file = CheckpointFile.open(path)
    _check_native(file)
    names = set(file.shapes) - {key for key, place in file.stored.items() if place.name.startswith(_OPEN_CLIP)}
    keys = {encoder: key for key, encoder in reversed(_TOKEN_TABLES.items()) if key in names}
    if not keys:
        sample = ", ".join(sorted(file.shapes)[:3])[:200] or "nothing"
        raise CheckpointError(
            f"{file.path.name} holds no token table of a text encoder, but {sample}; give a whole checkpoint.", path=file.path
        )
    with file.reader() as reader:
        tables = {encoder: reader.tensor(key) for encoder, key in keys.items()}
    for encoder, table in tables.items():
        if table.ndim != 2 or 0 in table.shape or not table.is_floating_point():
            kind = f"{str(table.dtype).removeprefix('torch.')} of shape {list(table.shape)}"
            raise CheckpointError(
                f"{file.path.name} has a token table for {encoder} that is {kind}; expected floats of [tokens, width].", path=file.path
            )
    return tables


class CheckpointFacts(NamedTuple):
    """Facts from the header of a checkpoint file: text encoder -> width of its token table, and picture side in pixels."""

    widths: dict[str, int]
    picture_size: int


def picture_size(family: str, model_channels: int, *, predicts_v: bool = False) -> int:
    """Native picture side in pixels.

    Args:
        family: as `check_family` says.
        model_channels: channels of the UNet's first level.
        predicts_v: it predicts v, as the larger SD2 checkpoints do.
    """
    if model_channels < 320:  # the tiny checkpoints
        return 128
    if family == "SDXL":
        return 1024
    return 768 if family == "SD2" and predicts_v else 512


def checkpoint_facts(path: Path) -> CheckpointFacts:
    """Read the facts from the header. An unchanged file is read once.

    Raises:
        CheckpointError: no checkpoint, or one of a family that is not handled.
    """
    return _facts(path, stamp_of(path))


@lru_cache(maxsize=32)
def _facts(path: Path, _stamp: FileStamp | None) -> CheckpointFacts:
    from textual_inversion.diffusion.prediction import stated_prediction  # here, because it imports this module

    file = CheckpointFile.open(path)
    family, stated = check_family(file), stated_prediction(file)
    try:
        widths = {encoder: file.shapes[prefix + _TABLE][1] for encoder, prefix in TEXT_ENCODERS[family].items()}
        channels, inputs = file.shapes[f"{UNET}input_blocks.0.0.weight"][:2]
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} misses a tensor or has one of another shape ({error}); download it again.", path=path
        ) from error
    # most SD2 checkpoints predict v; those that see more than the latents were trained on the one that does not
    predicts_v = stated.prediction.name == "v_prediction" if stated else family == "SD2" and inputs == LATENTS
    return CheckpointFacts(widths, picture_size(family, channels, predicts_v=predicts_v))
