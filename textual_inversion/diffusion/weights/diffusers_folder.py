"""A checkpoint that is a folder in diffusers' layout: which files hold its parts, and what its settings say.

Layout: https://huggingface.co/docs/diffusers/using-diffusers/other-formats
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from textual_inversion.diffusion.weights import diffusers_names as names
from textual_inversion.diffusion.weights.diffusers_settings import check_unet, check_vae, is_open_clip, read_scheduler
from textual_inversion.diffusion.weights.places import Place, Weights
from textual_inversion.diffusion.weights.tensor_files import Read, TensorFile, open_tensor_file
from textual_inversion.errors import CheckpointError, UnsupportedCheckpointError
from textual_inversion.files import open_regular, os_error_words

INDEX = "model_index.json"
_MOST_JSON_BYTES = 16 * 2**20
#: Beginning of a weights file, variant, ending. Shards have numbers in them and are found by their index.
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model|pytorch_model)(?:\.([\w-]+?))?\.(safetensors|bin)")
_SHARDS = re.compile(r"(diffusion_pytorch_model|model|pytorch_model)\.(safetensors|bin)\.index(?:\.([\w-]+?))?\.json")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
#: Variants by preference: the plain files first, weights that are not averaged last.
_VARIANTS = ("", "fp32", "fp16", "bf16", "ema")
_LAST_VARIANTS = ("non_ema", "no_ema")
#: Parts -> the classes that they may be of.
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection", "CLIPTextModel"),
}
_NEEDED = ("unet", "vae", "text_encoder")
_UNET, _VAE, _CLIP, _OPEN_CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.", "cond_stage_model.model."
_SDXL_FIRST, _SDXL_SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
_REFINER = "conditioner.embedders.0.model."
_SD2_LAYERS = 23  # of 24; diffusers leaves out the last one


def is_diffusers_folder(path: Path) -> bool:
    """Whether a folder holds a whole checkpoint in diffusers' layout."""
    return (path / INDEX).is_file()


def open_folder(path: Path) -> Weights:
    """Read the headers and the settings of a folder.

    Raises:
        CheckpointError: no folder in diffusers' layout, or parts or settings that are missing or damaged.
        UnsupportedCheckpointError: a model of another kind, or settings that are not handled.
    """
    if not is_diffusers_folder(path):
        raise _no_checkpoint(path)
    folder = _Folder(path, read_json(path, INDEX))
    folder.check_classes()
    parts = [part for part in _CLASSES if folder.has(part) or part in _NEEDED]
    if folder.has("text_encoder_2") and not folder.has("text_encoder"):
        parts.remove("text_encoder")  # as in refiners
    files = _FolderFiles.of(path, {part: _files(folder, part) for part in parts})
    scheduler = "scheduler/scheduler_config.json"
    made, metadata = read_scheduler(path, read_json(path, scheduler) if (path / scheduler).is_file() else {})
    places = folder.places(files)
    return Weights(path, files, places, made, metadata, tuple(places))


def vae_alone(weights: Weights) -> Weights | None:
    """A lone VAE in diffusers' names, under LDM's; None where the file is something else."""
    if "encoder.down_blocks.0.resnets.0.conv1.weight" not in weights.places:
        return None
    places = {_VAE + ours: weights.places[theirs] for ours, theirs in names.vae_names(weights.places).items()}
    return replace(weights, places=places)


@dataclass(frozen=True)
class _FolderFiles(TensorFile):
    """The files of all parts as one; the names of tensors begin with the part's folder.

    Attributes:
        parts: folder -> its files, several where they are shards.
    """

    parts: Mapping[str, list[TensorFile]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, parts: Mapping[str, list[TensorFile]]) -> _FolderFiles:
        """All files of these parts."""
        shapes = {f"{part}/{name}": shape for part, files in parts.items() for file in files for name, shape in file.shapes.items()}
        return cls(path, shapes, {}, tuple(shapes), parts)

    @contextmanager
    def opened(self) -> Iterator[Read]:
        """Open every file; raises `CheckpointError`."""
        with ExitStack() as stack:
            reads: dict[str, tuple[Read, str]] = {}
            for part, files in self.parts.items():
                for file in files:
                    read = stack.enter_context(file.opened())
                    reads |= {f"{part}/{name}": (read, name) for name in file.shapes}
            yield lambda name: reads[name][0](reads[name][1])


@dataclass(frozen=True)
class _Folder:
    """A folder, and what its index says of its parts."""

    path: Path
    index: Mapping[str, Any]

    @property
    def pipeline(self) -> str:
        """The class that diffusers makes of it."""
        return str(self.index.get("_class_name", "an unknown pipeline"))[:80]

    def has(self, part: str) -> bool:
        """Whether the index lists the part, or says nothing of it and the folder is there."""
        listed = self.index.get(part, [part, part])
        return isinstance(listed, list) and any(listed) and (self.path / part).is_dir()

    def config(self, part: str) -> dict[str, Any]:
        """The settings of a part; raises `CheckpointError`."""
        return read_json(self.path, f"{part}/config.json")

    def check_classes(self) -> None:
        """Raise `UnsupportedCheckpointError` where a part is of another kind than Stable Diffusion's."""
        for part, expected in _CLASSES.items():
            listed = self.index.get(part)
            name = listed[1] if isinstance(listed, list) and len(listed) == 2 else None
            if name not in (None, *expected):
                raise self.unsupported(f"whose {part} is of the class {str(name)[:60]}")
        if "unet" not in self.index and (others := [part for part in ("transformer", "prior", "decoder") if part in self.index]):
            raise self.unsupported(f"which has a {others[0]} in the place of a UNet")

    def unsupported(self, reason: str) -> UnsupportedCheckpointError:
        """The error that names the pipeline."""
        sentence = f"{self.path.name} is a folder for {self.pipeline}, {reason}; choose a checkpoint of Stable Diffusion."
        return UnsupportedCheckpointError(sentence, path=self.path)

    def places(self, files: _FolderFiles) -> dict[str, Place]:
        """LDM's names of everything in the folder."""
        is_sdxl = self.has("text_encoder_2")
        check_unet(self.path, self.config("unet"))
        check_vae(self.path, self.config("vae"), is_sdxl=is_sdxl)
        places = _renamed("unet", _UNET, names.unet_names(_names(files, "unet")))
        places |= _renamed("vae", _VAE, names.vae_names(_names(files, "vae")))
        if "text_encoder" in files.parts:
            places |= self._text_places(files, "text_encoder", _SDXL_FIRST if is_sdxl else "")
        if is_sdxl:
            places |= self._text_places(files, "text_encoder_2", _SDXL_SECOND if "text_encoder" in files.parts else _REFINER)
        return places

    def _text_places(self, files: _FolderFiles, part: str, prefix: str) -> dict[str, Place]:
        """A text encoder. Its activation tells OpenCLIP's from CLIP's."""
        config = self.config(part)
        if not is_open_clip(self.path, part, config):
            return _renamed(part, prefix or _CLIP, names.clip_names(_names(files, part)))
        layers = config.get("num_hidden_layers")
        repeats = not prefix and isinstance(layers, int) and layers < _SD2_LAYERS
        found = names.open_clip_places(_names(files, part), repeats_last=repeats)
        inside = {ours: place._replace(names=tuple(f"{part}/{name}" for name in place.names)) for ours, place in found.items()}
        return {(prefix or _OPEN_CLIP) + ours: place for ours, place in inside.items()}


def _names(files: _FolderFiles, part: str) -> list[str]:
    return [name for file in files.parts[part] for name in file.shapes]


def _renamed(part: str, prefix: str, found: Mapping[str, str]) -> dict[str, Place]:
    return {prefix + ours: Place((f"{part}/{theirs}",)) for ours, theirs in found.items()}


def _files(folder: _Folder, part: str) -> list[TensorFile]:
    """The files of a part, of the preferred variant."""
    inside = folder.path / part
    candidates: list[tuple[int, bool, str, bool]] = []
    for name in sorted(path.name for path in inside.glob("*")):
        single, shards = _WEIGHTS.fullmatch(name), _SHARDS.fullmatch(name)
        if single and not _SHARD.search(name):
            candidates.append((_rank(single[2]), single[3] != "safetensors", name, False))
        elif shards:
            candidates.append((_rank(shards[3]), shards[2] != "safetensors", name, True))
    if not candidates:
        found = ", ".join(sorted(path.name for path in inside.glob("*"))[:4]) or "nothing"
        reason = f"{folder.path.name} has no weights of its {part}: its folder {part} holds {found}"
        advice = "expected diffusion_pytorch_model or model as .safetensors or .bin; download it again"
        raise CheckpointError(f"{reason}; {advice}.", path=folder.path)
    _, _, name, sharded = min(candidates)
    return [open_tensor_file(inside / file) for file in (_shards(folder, f"{part}/{name}") if sharded else [name])]


def _rank(variant: str | None) -> int:
    """The place of a variant in the order of preference."""
    if variant in _LAST_VARIANTS:
        return len(_VARIANTS) + 1
    return _VARIANTS.index(variant or "") if (variant or "") in _VARIANTS else len(_VARIANTS)


def _shards(folder: _Folder, index: str) -> list[str]:
    """The names of the files that an index of shards lists."""
    listed = read_json(folder.path, index).get("weight_map")
    found = sorted(set(listed.values())) if isinstance(listed, dict) and all(isinstance(one, str) for one in listed.values()) else []
    inside = (folder.path / index).parent
    if not found or any(not name or Path(name).name != name or "\\" in name for name in found):
        raise CheckpointError(f"{folder.path.name}: {index} lists no files of its own folder; download it again.", path=folder.path)
    if missing := [name for name in found if not (inside / name).is_file()]:
        reason = f"{folder.path.name} has {len(missing)} of {len(found)} parts of {index} not there, such as {missing[0]}"
        raise CheckpointError(f"{reason}; download it again.", path=folder.path)
    return found


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A settings file of the folder at `path`; raises `CheckpointError` where it is missing or damaged."""
    try:
        with open_regular(path / name) as file:
            values = json.loads(file.read(_MOST_JSON_BYTES).decode("utf-8"))
    except OSError as error:
        words = os_error_words(error)
        raise CheckpointError(f"{path.name}: {name} cannot be read ({words}); download the folder again.", path=path) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: {name} is damaged; download it again.", path=path) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path.name}: {name} holds no settings; download it again.", path=path)
    return values


def _no_checkpoint(path: Path) -> CheckpointError:
    """The error for a folder that is no checkpoint: a part of one, a download's cache, or something else."""
    inner = next((found.parent for found in sorted(path.glob("snapshots/*/" + INDEX))), None)
    if inner is not None:
        return CheckpointError(f"{path.name} is a download's cache; give the folder in it that holds {INDEX}, {inner}.", path=path)
    if is_diffusers_folder(path.absolute().parent) and path.name in _CLASSES:
        kind = f"only the {path.name} of a diffusers folder; give the whole folder, {path.absolute().parent}"
        return CheckpointError(f"{path.name} is {kind}.", path=path)
    if (path / "config.json").is_file():
        what = str(read_json(path, "config.json").get("_class_name", "a model"))[:60]
        return CheckpointError(f"{path.name} is a folder with only a part of a model ({what}); give a whole checkpoint.", path=path)
    expected = f"a checkpoint file, or a folder in diffusers' layout with {INDEX}"
    return CheckpointError(f"{path.name} is a folder without {INDEX}; give {expected}.", path=path)
