"""Translates names of tensors from diffusers' and transformers' layout to the LDM layout."""

from __future__ import annotations

import re
from collections.abc import Iterable

from textual_inversion.diffusion.weights.open_clip import OPEN_CLIP_ENDS, OPEN_CLIP_MODULES
from textual_inversion.diffusion.weights.places import Place

_PLACE = re.compile(r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
#: Modules outside the blocks.
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
#: Modules of the VAE's attention, in the names of today's diffusers and of the first versions.
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
TEXT_MODEL = "text_model."


def unet_names(names: Iterable[str]) -> dict[str, str]:
    """LDM's names of a UNet's tensors -> diffusers' names."""
    names = sorted(names)
    blocks = _UNetBlocks(names)
    return {found: name for name in names if (found := _exchanged(name, _UNET_ENDS) or blocks.translated(name))}


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """LDM's names of a VAE's tensors -> diffusers' names."""
    names = sorted(names)
    levels = 1 + max((int(found[1]) for name in names if (found := re.match(r"decoder\.up_blocks\.(\d+)\.", name))), default=0)
    return {_vae_name(name, levels): name for name in names}


def clip_names(names: Iterable[str]) -> dict[str, str]:
    """The names of a CLIP text encoder with `text_model.` in front, which some versions leave out -> the stored names."""
    return {name if name.startswith((TEXT_MODEL, "text_projection.")) else TEXT_MODEL + name: name for name in names}


def open_clip_places(names: Iterable[str], *, repeats_last: bool = False) -> dict[str, Place]:
    """OpenCLIP's names of a text encoder's tensors -> where they are in transformers' layout.

    Args:
        repeats_last: add the last layer once more. SD2 takes the output of the last layer but one; diffusers leaves out the one
            behind it, which nobody computes.
    """
    stored = clip_names(names)
    places = {ours: Place((stored[TEXT_MODEL + theirs],)) for theirs, ours in OPEN_CLIP_ENDS.items() if TEXT_MODEL + theirs in stored}
    if "text_projection.weight" in stored:
        places["text_projection"] = Place((stored["text_projection.weight"],), transposed=True)
    layers = 0
    while layer := _open_clip_layer(stored, layers, layers):
        places |= layer
        layers += 1
    return places | (_open_clip_layer(stored, layers - 1, layers) if repeats_last and layers else {})


def _open_clip_layer(stored: dict[str, str], layer: int, target: int) -> dict[str, Place]:
    theirs, ours = f"{TEXT_MODEL}encoder.layers.{layer}.", f"transformer.resblocks.{target}."
    places: dict[str, Place] = {}
    for part in ("weight", "bias"):
        for their_name, name in OPEN_CLIP_MODULES.items():
            if (found := stored.get(f"{theirs}{their_name}.{part}")) is not None:
                places[f"{ours}{name}.{part}"] = Place((found,))
        joined = [stored.get(f"{theirs}self_attn.{one}_proj.{part}") for one in "qkv"]
        if names := tuple(name for name in joined if name is not None):
            places[f"{ours}attn.in_proj_{part}"] = Place(names)
    return places


def _exchanged(name: str, modules: dict[str, str]) -> str:
    """The name with its module exchanged; empty where no module is known."""
    module, _, part = name.rpartition(".")
    return f"{modules[module]}.{part}" if module in modules else ""


class _UNetBlocks:
    """Counts the blocks of a UNet: LDM numbers them through, diffusers level by level."""

    def __init__(self, names: list[str]) -> None:
        found = [match for name in names if (match := _PLACE.fullmatch(name))]
        self._blocks: dict[str, dict[int, int]] = {"down_blocks": {}, "up_blocks": {}}
        self._attends: set[tuple[str, int]] = set()
        for side, level, kind, number, _ in (match.groups() for match in found):
            if side in self._blocks and level is not None:
                before = self._blocks[side].get(int(level), 0)
                self._blocks[side][int(level)] = max(before, int(number) + 1 if kind == "resnets" else 0)
                if kind == "attentions":
                    self._attends.add((side, int(level)))

    def translated(self, name: str) -> str:
        """LDM's name; empty where it has none."""
        match = _PLACE.fullmatch(name)
        if match is None:
            return ""
        side, level, kind, number, rest = match.groups()
        inner = rest if kind == "attentions" else _exchanged(rest, _UNET_RESNET) if kind == "resnets" else rest.removeprefix("conv.")
        if not inner:
            return ""
        if side == "mid_block":
            return f"middle_block.{(0, 2)[min(int(number), 1)] if kind == 'resnets' else 1}.{inner}"
        return f"{self._block(side, int(level), int(number), kind)}.{inner}"

    def _block(self, side: str, level: int, number: int, kind: str) -> str:
        counts = self._blocks[side]
        before = sum(counts.get(index, 0) for index in range(level))
        if side == "down_blocks":  # behind the first convolution, and the change of size behind each level is a block of its own
            place = 1 + before + level + (counts[level] if kind == "downsamplers" else number)
            return f"input_blocks.{place}.{int(kind == 'attentions')}" + (".op" if kind == "downsamplers" else "")
        place = before + (counts[level] - 1 if kind == "upsamplers" else number)
        if kind == "upsamplers":
            return f"output_blocks.{place}.{1 + ((side, level) in self._attends)}.conv"
        return f"output_blocks.{place}.{int(kind == 'attentions')}"


def _vae_name(name: str, levels: int) -> str:
    match = re.fullmatch(r"(encoder|decoder)\.(.+)", name)
    if match is None:
        return name  # the two convolutions around the latents have the same names
    part, inner = match.groups()
    if (block := _PLACE.fullmatch(inner)) is None:
        return f"{part}.{inner.replace('conv_norm_out', 'norm_out')}"
    side, level, kind, number, rest = block.groups()
    if kind == "attentions":
        return f"{part}.mid.attn_{int(number) + 1}.{_exchanged(rest, _VAE_ATTENTION) or rest}"
    rest = rest.replace("conv_shortcut", "nin_shortcut")
    if side == "mid_block":
        return f"{part}.mid.block_{int(number) + 1}.{rest}"
    place = f"down.{level}" if side == "down_blocks" else f"up.{levels - 1 - int(level)}"
    return f"{part}.{place}." + {"resnets": f"block.{number}.", "downsamplers": "downsample.", "upsamplers": "upsample."}[kind] + rest
