"""Layouts with one tensor for each text encoder (SDXL, SD3, Flux, HiDream, Sana), and helpers that other layouts share.

A key such as `clip_g` holds rows of that encoder's token table. The same key with `_out` holds the encoder's output for the word, which
prompts here cannot use. The reader ignores outputs beside rows; a file with outputs only is unusable. emb_params.py reads SDXL's
`clip_l` and `clip_g` from a safetensors file. This module reads the other cases: pickles, one of the two keys alone, and text encoders
of models that are not supported here. `clip_l` alone, as a Flux trainer may write it, is read as an SD1 embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from textual_inversion.embedding import ENCODER_BY_WIDTH, encoder_for_width, family_of
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.tensors import Contents, StoredTensor
from textual_inversion.formats.layout import NO_TENSOR, Keys, Layout, Parsed, as_vectors, with_metadata

if TYPE_CHECKING:
    import torch

#: Key in files -> the text encoder. Prompts here do not support models with the encoders from `t5` on.
ENCODERS = {
    "clip_l": "clip_l",
    "clip_g": "clip_g",
    "clip_h": "clip_h",
    "t5": "t5",
    "t5xxl": "t5",
    "llama": "llama",
    "gemma": "gemma",
    "gemma2_2b": "gemma",
}
#: A text encoder's key, with or without `_out`.
ENCODER_KEY = re.compile(rf"({'|'.join(ENCODERS)})(_out)?")
#: Why an embedding with only a text encoder's outputs is unusable.
ONLY_OUTPUTS = "it holds outputs of the text encoder ({}) instead of words for it, which no prompt here can use"
_OUT = "_out"
_CLIP = set(ENCODER_BY_WIDTH.values())
_T5_WIDTH = 4096


def names_encoder(key: object) -> bool:
    """Whether `key` is the key of a text encoder, with or without `_out`."""
    return isinstance(key, str) and ENCODER_KEY.fullmatch(key) is not None


def by_width(rows: StoredTensor) -> Parsed:
    """An embedding from the rows of one text encoder; their width determines which encoder."""
    return Parsed({encoder_for_width(rows.shape[1]): rows})


def by_encoder(tree: Mapping[Any, Any]) -> Parsed:
    """Read the vectors under the keys that name a text encoder; other keys are ignored.

    The encoders may have different counts. The word then takes the largest count of places.

    Raises:
        EmbeddingError: one of the keys holds no vectors, or two name the same text encoder.
    """
    vectors: dict[str, StoredTensor] = {}
    outputs: set[str] = set()
    for key in filter(names_encoder, tree):
        rows = as_vectors(tree[key], key)
        encoder = ENCODERS[key.removesuffix(_OUT)]
        if key.endswith(_OUT):
            outputs.add(encoder)
        elif encoder in vectors:
            raise EmbeddingError(f"it holds vectors for {encoder} twice.", field=key)
        else:
            vectors[encoder] = rows
    if len(vectors) == 1 and set(vectors) <= _CLIP:
        ((encoder, rows),) = vectors.items()
        vectors = {ENCODER_BY_WIDTH.get(rows.shape[1], encoder): rows}  # the width is more reliable than the key
    unusable = ""
    if set(vectors) - _CLIP:
        family = family_of(dict.fromkeys(vectors, 0))
        unusable = f"it is made for {family}, whose text encoders ({', '.join(sorted(vectors))}) no prompt here speaks to"
    elif outputs - set(vectors):
        unusable = ONLY_OUTPUTS.format(", ".join(sorted(outputs - set(vectors))))
    return Parsed(dict(sorted(vectors.items(), key=lambda item: item[0] != "clip_l")), unusable=unusable)


def join_rows(parts: Sequence[StoredTensor]) -> StoredTensor:
    """Stack the rows of several tensors [..., d] of the same width to [n, d]."""
    if len(parts) == 1 and len(parts[0].shape) == 2:
        return parts[0]
    width = parts[0].shape[-1]

    def read() -> torch.Tensor:
        import torch

        return torch.cat([part.read().reshape(-1, width) for part in parts])

    dtypes = {part.dtype for part in parts}
    rows = sum(math.prod(part.shape[:-1]) for part in parts)
    return replace(parts[0], shape=(rows, width), dtype=dtypes.pop() if len(dtypes) == 1 else "fp32", read=read)


def read(contents: Contents) -> list[Parsed]:
    """The vectors for each text encoder."""
    return [with_metadata(contents, by_encoder(contents.tree))]


def read_replicate(contents: Contents) -> list[Parsed]:
    """The vectors under `text_encoders_0`, `text_encoders_1`, …; their width determines the text encoder.

    Raises:
        EmbeddingError: one of the keys holds no vectors, or two keys hold vectors of the same width.
    """
    vectors: dict[str, StoredTensor] = {}
    for key in sorted(contents.tree):
        rows = as_vectors(contents.tree[key], key)
        encoder = "t5" if rows.shape[1] == _T5_WIDTH else encoder_for_width(rows.shape[1])
        if encoder in vectors:
            raise EmbeddingError(f"it holds vectors {rows.shape[1]} wide twice, so that nothing tells the text encoders apart.", field=key)
        vectors[encoder] = rows
    return [with_metadata(contents, by_encoder(vectors))]


LAYOUT = Layout(
    "text encoders",
    read,
    # only SDXL's two keys allow tensors under other keys
    keys=(Keys(has={"clip_l": object, "clip_g": object}), Keys(some=ENCODER_KEY, others=NO_TENSOR)),
    before=("in a LoRA", "no embedding"),
)
REPLICATE = Layout(
    "Replicate .pti",
    read_replicate,
    keys=(Keys(some=re.compile("text_encoders_[0-3]"), others=()),),
    before=("diffusers",),
)
