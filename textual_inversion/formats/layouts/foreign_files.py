"""Recognises files that are not embeddings for prompts: XTI, and files that users put among embeddings by mistake.

XTI stores one set of vectors for each cross-attention layer of the UNet (https://arxiv.org/abs/2303.09522).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

from textual_inversion.errors import UnknownLayoutError
from textual_inversion.formats.containers.tensors import Contents
from textual_inversion.formats.layout import Keys, Layout, Parsed, summarize, with_metadata

#: SD1's sixteen cross-attention layers.
_XTI_LAYERS = ("MID", *(f"IN{index:02}" for index in (1, 2, 4, 5, 7, 8)), *(f"OUT{index:02}" for index in range(3, 12)))
_MAX_KEY = 300  # characters; limits the time of pattern matching


class _Kind(NamedTuple):
    """A kind of file, and the folder for it. A file is of this kind when each of `patterns` matches a key."""

    what: str
    where: str
    patterns: tuple[re.Pattern[str], ...]


def _kind(what: str, where: str, *patterns: str) -> _Kind:
    return _Kind(what, where, tuple(map(re.compile, patterns)))


#: Tried in this order, because a checkpoint holds a VAE, and a LoRA may name the layers of anything.
_KINDS = (
    _kind(
        "the optimizer's state that A1111 keeps beside an embedding",
        "beside it under the name X.pt.optim",
        r"optimizer_state_dict$",
        r"hash$",
    ),
    _kind(
        "a LoRA or LyCORIS",
        "models/Lora",
        r".*[._](lora_(up|down|mid|A|B|unet|te\d?)|hada_w\d_[ab]|hada_t\d|lokr_w\d.*|oft_(blocks|diag)|boft_blocks|dora_scale|glora_[ab]\d)([._]|$)"
        r"|lora_(up|down|mid|unet|te\d?|prior)[._]|.*processor\..*lora",
    ),
    _kind("a hypernetwork", "models/hypernetworks", r"(layer_structure|activation_func|weight_initialization)$"),
    _kind("an IP-Adapter", "models/ControlNet", r"(ip_adapter|image_proj)(\.|$)"),
    _kind("a ControlNet", "models/ControlNet", r"(control_model\.|controlnet_|lora_controlnet|zero_convs\.|input_hint_block\.)"),
    _kind("a T2I-Adapter", "models/ControlNet", r"(adapter\.)?body\.\d+\.block1\.weight", r"(adapter\.)?conv_in\.weight"),
    _kind(
        "a checkpoint", "models/Stable-diffusion", r"(model\.diffusion_model\.|model_ema\.|double_blocks\.|joint_blocks\.|input_blocks\.)"
    ),
    _kind("a UNet", "models/Stable-diffusion, within a checkpoint", r"(down_blocks|up_blocks|mid_block)\.", r"(time_embedding|conv_in)\."),
    _kind(
        "a VAE",
        "models/VAE",
        r"(first_stage_model\.)?encoder\.(conv_in|down|down_blocks)\b",
        r"(first_stage_model\.)?decoder\.(conv_in|up|up_blocks)\b",
    ),
    _kind(
        "a text encoder",
        "models/text_encoder or within a checkpoint",
        r"(cond_stage_model|text_model\.(encoder|embeddings)|transformer\.(resblocks|text_model)|encoder\.block\.\d+\.layer|shared\.weight)",
    ),
    _kind(
        "an upscaler",
        "models/ESRGAN or the folder of its kind",
        r"(params(_ema)?$|conv_first\.|RRDB_trunk|body\.\d+\.|model\.\d+\.(sub|weight|bias)|layers\.\d+\.(residual_group|blocks))",
    ),
)


def names_foreign_file(key: str) -> bool:
    """Whether this key alone identifies a file as something other than an embedding."""
    return _recognise({key: None}) is not None


def kind_of_file(keys: Iterable[str]) -> tuple[str, str] | None:
    """The kind of a file by its keys, such as `a LoRA or LyCORIS`, and the folder for it; None where it is of no known kind."""
    kind = _recognise(dict.fromkeys(keys))
    return (kind.what, kind.where) if kind else None


def read_xti(contents: Contents) -> list[Parsed]:
    """Return an unusable embedding: XTI has vectors for each layer, but a prompt gives all layers the same vectors."""
    reason = "it is an XTI embedding with its own vectors for each attention layer, which no prompt here can use"
    return [with_metadata(contents, Parsed({}, unusable=reason))]


def read(contents: Contents) -> NoReturn:
    """Raise an error that names the kind of file.

    Raises:
        UnknownLayoutError: always; a clause that follows the file's name.
    """
    kind = _recognise(contents.tree)
    what, where = (kind.what, kind.where) if kind else ("no embedding", "another folder")
    raise UnknownLayoutError(f"it is {what} ({summarize(contents.tree)}), not an embedding; it belongs into {where}.")


def _recognise(tree: Any) -> _Kind | None:
    if not isinstance(tree, dict):
        return None
    keys = list(_keys(tree))
    return next((kind for kind in _KINDS if all(any(pattern.match(key) for key in keys) for pattern in kind.patterns)), None)


def _keys(tree: dict[Any, Any]) -> Iterable[str]:
    """The first characters of the keys of `tree`, and of the inner dict in which a checkpoint may keep its tensors."""
    for part in (tree, *(tree.get(wrapper) for wrapper in ("state_dict", "model", "module"))):
        if isinstance(part, dict):
            yield from (key[:_MAX_KEY] for key in part if isinstance(key, str))


XTI = Layout("XTI", read_xti, keys=(Keys(has=dict.fromkeys(_XTI_LAYERS, object), others=()),), before=("diffusers",))
FOREIGN = Layout("no embedding", read, when=lambda contents: _recognise(contents.tree) is not None, before=("diffusers",))
