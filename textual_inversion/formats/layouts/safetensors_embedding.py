"""The layout that kohya, InvokeAI, ComfyUI, Forge and A1111 share: `emb_params`, or `clip_l` + `clip_g` for SDXL.

Knows nothing of files. The header's metadata are the texts of `metadata.py`, and always `format: pt`, which some readers want to see.
The text encoder of `emb_params` is told by its width.
"""

from __future__ import annotations

from textual_inversion.embedding import Embedding, encoder_for_width
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.safetensors_file import write_safetensors
from textual_inversion.formats.layout import Contents, Layout, Parsed, as_text, as_vectors
from textual_inversion.formats.layouts.metadata import metadata_of, provenance_in

_SDXL = {"clip_l", "clip_g"}


def detect(contents: Contents) -> bool:
    """Whether this is a safetensors file with `emb_params` alone, or `clip_l` and `clip_g` with at most their `_out`."""
    if contents.container != "safetensors":
        return False
    keys = set(contents.tree)
    return keys == {"emb_params"} or (keys >= _SDXL and keys <= _SDXL | {"clip_l_out", "clip_g_out"})


def read(contents: Contents) -> list[Parsed]:
    """The vectors; `_out` tensors are outputs of the encoder, not rows of its table, and are left out."""
    if "emb_params" in contents.tree:
        rows = as_vectors(contents.tree["emb_params"], "emb_params")
        vectors = {encoder_for_width(rows.shape[1]): rows}
    else:
        vectors = {key: as_vectors(contents.tree[key], key) for key in sorted(_SDXL, reverse=True)}
    return [Parsed(vectors, as_text(contents.metadata.get("ti_name")), provenance_in(contents.metadata))]


def write(embedding: Embedding) -> bytes:
    """The file's bytes, vectors in fp32.

    Raises:
        EmbeddingError: vectors for several text encoders that are not SDXL's `clip_l` and `clip_g`.
    """
    vectors = embedding.vectors
    if len(vectors) == 1:
        vectors = {"emb_params": next(iter(vectors.values()))}
    elif set(vectors) != _SDXL:
        raise EmbeddingError(f"it has vectors for {', '.join(sorted(vectors))}; this layout holds one text encoder, or clip_l and clip_g.")
    return write_safetensors(vectors, {"format": "pt", **metadata_of(embedding)})


LAYOUT = Layout("safetensors", detect, read, write, (".safetensors",))
