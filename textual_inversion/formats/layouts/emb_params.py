"""The `emb_params` layout (`clip_l` and `clip_g` for SDXL) of kohya, InvokeAI, ComfyUI, Forge and A1111; the default for writing.

The header of a safetensors file has the metadata texts of layout.py, and always `format: pt`, which some readers require. kohya also
writes `emb_params` into a pickle (`.pt`, `.bin`). OneTrainer spells the key `emp_params` and may add `emp_params_out`, the text
encoder's output. The width of the vectors determines the text encoder.
"""

from __future__ import annotations

import re

from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.safetensors_file import write_safetensors
from textual_inversion.formats.containers.tensors import Contents, StoredTensor
from textual_inversion.formats.layout import Keys, Layout, Parsed, as_text, as_vectors, metadata_of, provenance_in, with_metadata
from textual_inversion.formats.layouts.encoder_tensors import ENCODER_KEY, ONLY_OUTPUTS, by_width

_SDXL = ("clip_l", "clip_g")


def read_safetensors_embedding(contents: Contents) -> list[Parsed]:
    """Read the vectors. `_out` tensors are ignored: they are outputs of the encoder, not rows of its table."""
    tree = contents.tree
    if "emb_params" in tree:
        vectors = by_width(as_vectors(tree["emb_params"], "emb_params")).vectors
    else:
        vectors = {key: as_vectors(tree[key], key) for key in _SDXL}
    return [Parsed(vectors, as_text(contents.metadata.get("ti_name")), provenance_in(contents.metadata))]


def read_emb_params(contents: Contents) -> list[Parsed]:
    """Read the vectors of `emb_params`; other keys are ignored."""
    return [with_metadata(contents, by_width(as_vectors(contents.tree["emb_params"], "emb_params")))]


def read_onetrainer(contents: Contents) -> list[Parsed]:
    """Read the vectors of `emp_params`; a file with outputs only is unusable."""
    if "emp_params" in contents.tree:
        return [with_metadata(contents, by_width(as_vectors(contents.tree["emp_params"], "emp_params")))]
    return [with_metadata(contents, Parsed({}, unusable=ONLY_OUTPUTS.format("emp_params_out")))]


def write(embedding: Embedding) -> bytes:
    """The bytes of a safetensors file, vectors in fp32.

    Raises:
        EmbeddingError: vectors for several text encoders that are not SDXL's `clip_l` and `clip_g`.
    """
    vectors = embedding.vectors
    if len(vectors) == 1:
        vectors = {"emb_params": next(iter(vectors.values()))}
    elif set(vectors) != set(_SDXL):
        raise EmbeddingError(f"it has vectors for {', '.join(sorted(vectors))}; this layout holds one text encoder, or clip_l and clip_g.")
    return write_safetensors(vectors, {"format": "pt", **metadata_of(embedding)})


SAFETENSORS = Layout(
    "safetensors",
    read_safetensors_embedding,
    keys=(
        Keys(has={"emb_params": object}, others=()),
        Keys(has={"clip_l": object, "clip_g": object}, others=()),
        Keys(has={"clip_l": object, "clip_g": object}, some=re.compile("clip_[lg]_out"), others=()),
    ),
    containers=("safetensors",),
    before=("text encoders", "emb_params"),
    write=write,
    endings=(".safetensors",),
)
EMB_PARAMS = Layout(
    "emb_params",
    read_emb_params,
    keys=(Keys(has={"emb_params": StoredTensor}, lacks=ENCODER_KEY),),
    before=("OneTrainer", "in a LoRA", "no embedding"),
)
ONETRAINER = Layout(
    "OneTrainer",
    read_onetrainer,
    keys=(
        Keys(has={"emp_params": StoredTensor}, lacks=ENCODER_KEY),
        Keys(has={"emp_params_out": StoredTensor}, lacks=ENCODER_KEY),
    ),
    before=("in a LoRA", "no embedding"),
)
