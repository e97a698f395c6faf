"""A checkpoint that is a single file: its own names as the LDM layout has them, averaged weights, and weights of eight bits with scales."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from textual_inversion.diffusion.weights.places import Place, Shape, Weights
from textual_inversion.diffusion.weights.tensor_files import TensorFile, open_tensor_file
from textual_inversion.errors import UnsupportedCheckpointError

_UNET = "model.diffusion_model."
_AVERAGED = "model_ema."
_AVERAGED_UNET = "model_ema.diffusion_model"
_WRAPPERS = ("state_dict.", "module.")  # in front of every name, where a program has stored more than the model
_SCALES = (".scale_weight", ".weight_scale")
#: Words in the names of a UNet. Training programs leave out the dots between them in the names of averaged weights.
_WORDS = re.compile(
    r"transformer_blocks|input_blocks|output_blocks|middle_block|time_embed|label_emb|in_layers|out_layers|emb_layers|skip_connection"
    r"|to_out|to_q|to_k|to_v|proj_in|proj_out|attn|norm|proj|conv|net|ff|op|out|weight|bias|\d+"
)
_NUMBERED = ("attn", "norm")  # words whose number belongs to them
_PAIRED = ("input_blocks", "output_blocks", "label_emb")  # words with two numbers behind them, the second of one digit


def open_single_file(path: Path) -> Weights:
    """Read the header of a checkpoint file of any container.

    Raises:
        CheckpointError: no checkpoint file, or a damaged one.
        UnsupportedCheckpointError: weights of eight bits with scales of a kind that is not handled.
    """
    file = open_tensor_file(path)
    places = {name: Place((stored,)) for name, stored in _ldm_names(file.shapes).items()}
    places = {name: place._replace(scale=_scale(file, place.names[0])) for name, place in places.items() if not name.endswith(_SCALES)}
    return Weights(path, file, places, metadata=file.metadata, keys=file.keys)


def _ldm_names(names: Iterable[str]) -> dict[str, str]:
    """The LDM layout's names -> the names in the file."""
    found = {name: name for name in names}
    for wrapper in _WRAPPERS:
        if any(name.startswith(wrapper + _UNET) for name in found):
            found = {name.removeprefix(wrapper): stored for name, stored in found.items()}
    plain = {name: stored for name, stored in found.items() if not name.startswith(_AVERAGED)}
    if any(name.startswith(_UNET) for name in plain):
        return plain
    return plain | {_dotted(name): stored for name, stored in found.items() if name.startswith(_AVERAGED_UNET)}


def _dotted(name: str) -> str:
    """`model_ema.diffusion_modelout0weight` -> `model.diffusion_model.out.0.weight`"""
    parts: list[str] = []
    for word in _WORDS.findall(name.removeprefix(_AVERAGED_UNET)):
        if word.isdigit() and parts and parts[-1] in _NUMBERED:
            parts[-1] += word
        elif word.isdigit() and len(word) > 1 and parts and parts[-1] in _PAIRED:
            parts += [word[:-1], word[-1]]
        else:
            parts.append(word)
    return _UNET + ".".join(parts)


def _scale(file: TensorFile, name: str) -> str:
    """The name of the tensor that a weight has to be multiplied with; empty = none."""
    if not name.endswith(".weight"):
        return ""
    module = name.removesuffix(".weight")
    scale = next((module + ending for ending in _SCALES if module + ending in file.shapes), "")
    if scale and not _fits(file.shapes[scale], file.shapes[name]):
        sizes = f"{list(file.shapes[scale])} for {list(file.shapes[name])}"
        reason = f"{file.path.name} holds weights of eight bits with scales of an unknown kind ({scale}: {sizes})"
        raise UnsupportedCheckpointError(f"{reason}; take a checkpoint in fp16 or fp32.", path=file.path)
    return scale


def _fits(scale: Shape, weight: Shape) -> bool:
    """Whether a scale is one number, or one for each row."""
    longer = [length for length in scale if length != 1]
    return not longer or (bool(weight) and longer == [weight[0]] and scale[0] == weight[0])
