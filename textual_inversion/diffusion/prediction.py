"""Finds out what the UNet of a checkpoint predicts: from what the file says of itself, else by asking the UNet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from textual_inversion.diffusion import kernels
from textual_inversion.diffusion.beside import note_on_inputs
from textual_inversion.diffusion.checkpoint import CheckpointFile, check_family, checkpoint_facts
from textual_inversion.diffusion.conditioning import picture_sizes
from textual_inversion.diffusion.noise import Epsilon, Prediction, VPrediction
from textual_inversion.diffusion.weights.diffusers_settings import PREDICTION
from textual_inversion.files import open_regular

if TYPE_CHECKING:
    from textual_inversion.diffusion.model import StableDiffusion

_IN_YAML = re.compile(r"^\s*parameterization\s*:\s*[\"']?([\w-]+)", re.MULTILINE)
_MOST_YAML_BYTES = 2**20
#: How programs write the two; anything else says nothing.
_MEANINGS: dict[str, type[Prediction]] = {
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "vpred", "v_pred"), VPrediction),
    **dict.fromkeys(("epsilon", "eps"), Epsilon),
}
#: Metadata that trainers and mergers write -> the meaning of their values.
_IN_METADATA: dict[str, dict[str, type[Prediction]]] = {
    "modelspec.prediction_type": _MEANINGS,
    PREDICTION: _MEANINGS,  # of a folder in diffusers' layout
    "ss_v_parameterization": {"true": VPrediction, "1": VPrediction, "false": Epsilon, "0": Epsilon},
}
#: First 10 hex digits of the sha256 of SD2's own files -> what they predict. They say nothing of it themselves.
_KNOWN_FILES: dict[str, type[Prediction]] = {
    "bfcaf07557": VPrediction,  # 768-v-ema.ckpt
    "ad2a33c361": VPrediction,  # v2-1_768-ema-pruned.ckpt
    "dcd690123c": VPrediction,  # v2-1_768-ema-pruned.safetensors
    "4711ff4dd2": VPrediction,  # v2-1_768-nonema-pruned.ckpt
    "ff144a4984": VPrediction,  # v2-1_768-nonema-pruned.safetensors
    "88ecb78256": Epsilon,  # v2-1_512-ema-pruned.ckpt
    "df955bdf6b": Epsilon,  # v2-1_512-ema-pruned.safetensors
}
_WORDS = {Epsilon.name: "the noise", VPrediction.name: "v"}
_PROBE_SIDE = 32  # latents
_PROBE_LEVEL = 400  # a timestep at which noise can be told from the picture
_ALIKE = 0.5  # cosine between output and noise


class StatedPrediction(NamedTuple):
    """What a file says: the prediction, and the place that says so, for a sentence."""

    prediction: Prediction
    source: str


def find_prediction(model: StableDiffusion, wish: str = "auto") -> tuple[Prediction, str]:
    """What the UNet of a checkpoint predicts, and a sentence about it where that is not the noise.

    Args:
        model: its own prediction is not looked at.
        wish: `epsilon` or `v_prediction` where the user has decided; `auto` otherwise.
    """
    file = model.file
    if wish != "auto":
        return (VPrediction() if wish == VPrediction.name else Epsilon()), ""
    if stated := stated_prediction(file):
        sentence = f"{file.path.name} predicts v, as {stated.source} says." if isinstance(stated.prediction, VPrediction) else ""
        return stated.prediction, sentence
    name = file.path.name
    if model.family == "SD2" and (known := _known_file(file)):
        return known, f"{name} predicts v: by its hash it is one of SD2's own files." if isinstance(known, VPrediction) else ""
    with kernels.force("plain"):  # fused kernels may have to be compiled first, which takes a minute
        outcome = probe(model)
    if outcome == VPrediction.name:
        return VPrediction(), f"{name} seems to predict v, by a trial of its UNet; if it does not, set the prediction type."
    guess = f"Nothing says what {name} predicts; it is taken for the noise. If that is wrong, set the prediction type."
    return Epsilon(), "" if outcome or model.family != "SD2" else guess  # most SD2 checkpoints predict v, few others do


def about_checkpoint(path: Path, model: StableDiffusion | None = None) -> str:
    """Sentences on a checkpoint's family, its size, and what its UNet predicts: how that is known, and what to set if it is wrong.

    Args:
        path: the file or folder, of which the header is read.
        model: the same, where it is loaded: its trial counts then.

    Raises:
        CheckpointError: no checkpoint, or one of a family that is not handled.
    """
    file = CheckpointFile.open(path)
    side, stated = checkpoint_facts(path).picture_size, stated_prediction(file)
    first = f"{check_family(file)}, {side} x {side} pixels"
    if model is not None:
        return f"{first}; it predicts {_WORDS[model.prediction.name]}." if not model.notes else f"{first}. {' '.join(model.notes)}"
    inputs = note_on_inputs(file.path.name, file.input_channels)
    known = f"it predicts {_WORDS[stated.prediction.name]}, as {stated.source} says" if stated else "a trial tells what it predicts"
    return f"{first}; {known}.{' ' + inputs if inputs else ''}"


def stated_prediction(file: CheckpointFile) -> StatedPrediction | None:
    """What the file, its metadata or the `.yaml` beside it say; None where they say nothing."""
    if "v_pred" in file.shapes:
        return StatedPrediction(VPrediction(), "its key v_pred")
    if (found := _IN_YAML.search(_yaml_beside(file))) and (meaning := _MEANINGS.get(found[1].lower())):
        return StatedPrediction(meaning(), "the .yaml beside it")
    for key, meanings in _IN_METADATA.items():
        if meaning := meanings.get(file.metadata.get(key, "").strip().lower()):
            return StatedPrediction(meaning(), f"its {key}" if key == PREDICTION else f"its metadata ({key})")
    return None


def _known_file(file: CheckpointFile) -> Prediction | None:
    """What one of SD2's own files predicts, by its hash; None for other files. Reads the whole file."""
    try:
        known = _KNOWN_FILES.get(file.hash or "")
    except OSError:
        return None
    return known() if known else None


def ends_in_noise(file: CheckpointFile) -> bool:
    """Whether the file says that it was trained with a schedule that ends in pure noise."""
    return "ztsnr" in file.shapes or file.metadata.get("ss_zero_terminal_snr", "").strip().lower() in ("true", "1")


def _yaml_beside(file: CheckpointFile) -> str:
    path = file.path.with_suffix(".yaml")
    try:
        with open_regular(path) as source:
            return source.read(_MOST_YAML_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""


@torch.no_grad()
def probe(model: StableDiffusion) -> str:
    """Which prediction the outputs of a UNet look like: `epsilon`, `v_prediction`, or empty where it is neither.

    Two trials. In a grey picture with some noise, a trained UNet of either kind points to the noise; one that does not is left alone.
    In pure noise, one kind still predicts the noise; the other predicts the picture (arXiv 2202.00512, appendix D), which is not there.
    """
    generator, schedule, conditioner = torch.Generator().manual_seed(0), model.schedule, model.conditioner
    noise = torch.randn(1, model.vae.config.latent_channels, _PROBE_SIDE, _PROBE_SIDE, generator=generator).to(model.device)
    table = conditioner.table_of({})
    nothing = conditioner.encode(conditioner.tokenize([""], table), table.vectors)

    def likeness(timestep: int) -> float:
        timesteps = torch.full((1,), timestep, device=model.device)
        noisy = schedule.mix(torch.zeros_like(noise), noise, timesteps)
        output = model.predict(noisy, timesteps, nothing, picture_sizes([(8 * _PROBE_SIDE, 8 * _PROBE_SIDE)], model.device)).float()
        return float(torch.nn.functional.cosine_similarity(output.flatten(), noise.flatten(), dim=0))

    if not likeness(_PROBE_LEVEL) > _ALIKE:
        return ""
    return Epsilon.name if likeness(len(schedule.sigmas) - 1) > _ALIKE else VPrediction.name
