"""OpenCLIP's layout of a text encoder beside CLIP's: SD2 and SDXL's second text encoder are stored in it.

OpenCLIP stores the weights of queries, keys and values of a layer as one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

#: Modules of a layer, by CLIP's names -> by OpenCLIP's.
OPEN_CLIP_MODULES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
#: Tensors outside the layers, by CLIP's names -> by OpenCLIP's.
OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


class Stored(NamedTuple):
    """Where a tensor is in the file.

    Attributes:
        name: of the stored tensor.
        third: which third of its rows, for queries, keys or values; None = all of it.
    """

    name: str
    third: int | None = None


def open_clip_places(shapes: Mapping[str, tuple[int, ...]], theirs: str, ours: str) -> dict[str, Stored]:
    """The tensors of a text encoder in OpenCLIP's layout, by CLIP's names.

    Args:
        shapes: of the file's tensors.
        theirs: prefix of the stored names.
        ours: prefix of the names in the result.
    """
    text = ours + "text_model."
    places = {text + our_name: Stored(theirs + name) for our_name, name in OPEN_CLIP_ENDS.items()}
    places[ours + "text_projection"] = Stored(theirs + "text_projection")
    layer = 0
    while f"{theirs}transformer.resblocks.{layer}.ln_1.weight" in shapes:
        places |= _layer(f"{theirs}transformer.resblocks.{layer}.", f"{text}encoder.layers.{layer}.")
        layer += 1
    return {key: place for key, place in places.items() if shapes.get(place.name)}


def _layer(theirs: str, ours: str) -> dict[str, Stored]:
    """The tensors of one layer."""
    places = {}
    for part in ("weight", "bias"):
        for our_name, name in OPEN_CLIP_MODULES.items():
            places[f"{ours}{our_name}.{part}"] = Stored(f"{theirs}{name}.{part}")
        for third, our_name in enumerate(("q_proj", "k_proj", "v_proj")):
            places[f"{ours}self_attn.{our_name}.{part}"] = Stored(f"{theirs}attn.in_proj_{part}", third)
    return places
