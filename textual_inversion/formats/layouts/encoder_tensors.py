"""One tensor for each text encoder, as SDXL, SD3, Flux, HiDream and Sana embeddings have them. Knows nothing of files.

The keys are those of encoders.py. SDXL's `clip_l` + `clip_g` in a safetensors file is safetensors_embedding.py's, the rest is read
here: in pickles too, with `_out` keys, one half alone, and with the encoders of models that no prompt here speaks to. `clip_l`
alone, as a Flux trainer may write it, is an SD1 embedding in all but name and is read as one.
"""

from __future__ import annotations

from textual_inversion.embedding import encoder_for_width
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.layout import Contents, Layout, Parsed, StoredTensor, as_vectors
from textual_inversion.formats.layouts.encoders import by_encoder, names_encoder
from textual_inversion.formats.layouts.metadata import beside

_REPLICATE = "text_encoders_"
_T5_WIDTH = 4096


def detect(contents: Contents) -> bool:
    """Whether a key names a text encoder, and every other tensor's does unless `clip_l` and `clip_g` are both there."""
    tree = contents.tree
    if not isinstance(tree, dict) or not any(map(names_encoder, tree)):
        return False
    return {"clip_l", "clip_g"} <= set(tree) or all(names_encoder(key) for key, value in tree.items() if isinstance(value, StoredTensor))


def read(contents: Contents) -> list[Parsed]:
    """The vectors for each text encoder."""
    return [beside(contents, by_encoder(contents.tree))]


def detect_replicate(contents: Contents) -> bool:
    """Whether the keys are `text_encoders_0`, `text_encoders_1`, …, as in Replicate's `.pti`, whatever its ending."""
    tree = contents.tree
    return isinstance(tree, dict) and bool(tree) and {*tree} <= {f"{_REPLICATE}{index}" for index in range(4)}


def read_replicate(contents: Contents) -> list[Parsed]:
    """The vectors, the text encoder of each told by its width."""
    found: dict[str, StoredTensor] = {}
    for key in sorted(contents.tree):
        rows = as_vectors(contents.tree[key], key)
        encoder = "t5" if rows.shape[1] == _T5_WIDTH else encoder_for_width(rows.shape[1])
        if encoder in found:
            raise EmbeddingError(f"it holds vectors {rows.shape[1]} wide twice, so that nothing tells the text encoders apart.")
        found[encoder] = rows
    return [beside(contents, by_encoder(found))]


LAYOUT = Layout("text encoders", detect, read)
REPLICATE = Layout("Replicate .pti", detect_replicate, read_replicate)
