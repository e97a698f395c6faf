"""Layouts for embeddings inside a LoRA, and for the tensor lists and single tensors that ComfyUI reads.

OneTrainer writes keys such as `bundle_emb.<name>.clip_l` into a LoRA file. The reader takes these tensors and ignores the LoRA.
ComfyUI reads a list of dicts of tensors, or a single tensor. The widths determine the text encoders.
"""

from __future__ import annotations

import re
from typing import Any

from textual_inversion.embedding import ENCODER_BY_WIDTH, family_of
from textual_inversion.formats.containers.tensors import VECTOR_DTYPES, Contents, StoredTensor
from textual_inversion.formats.layout import Keys, Layout, Parsed, as_text, as_vectors
from textual_inversion.formats.layouts.encoder_tensors import by_encoder, by_width, join_rows, names_encoder

#: The name may contain dots. The part after it contains none, except in `string_to_param.<placeholder>`.
_BUNDLE_KEY = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\..+|[^.]+)", re.DOTALL)
_PARAM = "string_to_param."
_MAX_TENSORS = 1_000
#: The text encoders of each model, in the order of its vectors.
_MODELS = (("clip_l", "clip_g"), ("clip_h",))


def read_bundles(contents: Contents) -> list[Parsed]:
    """Read an embedding for each name, in the file's order. Each gets a word, because the file's name is the LoRA's."""
    bundles: dict[str, dict[str, Any]] = {}
    for key, value in contents.tree.items():
        if isinstance(key, str) and (match := _BUNDLE_KEY.fullmatch(key)):
            bundles.setdefault(match[1], {})[match[2]] = value
    return [_bundle(name, parts) for name, parts in bundles.items()]


def _bundle(name: str, parts: dict[str, Any]) -> Parsed:
    param = next((key for key in parts if key.startswith(_PARAM)), None)
    if param is not None:
        parsed = by_width(join_rows([as_vectors(parts[param], param)]))
    elif any(map(names_encoder, parts)):
        parsed = by_encoder(parts)
    elif len(parts) == 1:
        ((key, value),) = parts.items()
        parsed = by_width(as_vectors(value, key))
    else:
        parsed = Parsed({}, unusable=f"nothing is known of its parts {', '.join(sorted(parts))[:80]}")
    return Parsed(parsed.vectors, as_text(name), word=name[:200], unusable=parsed.unusable)


def read_list(contents: Contents) -> list[Parsed]:
    """Stack all rows of the same width. Rows for SD2 become a separate embedding from rows for SD1 or SDXL."""
    by_name: dict[str, list[StoredTensor]] = {}
    for value in [value for item in contents.tree for value in item.values()]:
        by_name.setdefault(ENCODER_BY_WIDTH[value.shape[-1]], []).append(value)
    models = [{encoder: join_rows(by_name[encoder]) for encoder in encoders if encoder in by_name} for encoders in _MODELS]
    present = [vectors for vectors in models if vectors]
    if len(present) == 1:
        return [Parsed(present[0])]
    return [Parsed(vectors, word=family_of({encoder: rows.shape[1] for encoder, rows in vectors.items()})) for vectors in present]


def read_tensor(contents: Contents) -> list[Parsed]:
    """Read the rows of a single tensor."""
    return [by_width(as_vectors(contents.tree, "the tensor"))]


def _is_list_of_rows(contents: Contents) -> bool:
    tree = contents.tree
    if not isinstance(tree, list) or not tree or not all(isinstance(item, dict) and item for item in tree):
        return False
    values = [value for item in tree for value in item.values()]
    return len(values) <= _MAX_TENSORS and all(
        isinstance(value, StoredTensor) and value.dtype in VECTOR_DTYPES and value.shape and value.shape[-1] in ENCODER_BY_WIDTH
        for value in values
    )


def _is_tensor_of_rows(contents: Contents) -> bool:
    tree = contents.tree
    return isinstance(tree, StoredTensor) and len(tree.shape) in (1, 2) and tree.shape[-1] in ENCODER_BY_WIDTH


IN_LORA = Layout("in a LoRA", read_bundles, keys=(Keys(some=_BUNDLE_KEY),), before=("no embedding", "diffusers"))
COMFYUI_LIST = Layout("ComfyUI list", read_list, when=_is_list_of_rows)
TENSOR_ALONE = Layout("tensor alone", read_tensor, when=_is_tensor_of_rows)
