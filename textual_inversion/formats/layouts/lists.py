"""What ComfyUI reads besides: a list of dicts of tensors, told apart by width; and a tensor alone. Knows nothing of files."""

from __future__ import annotations

from textual_inversion.embedding import ENCODER_BY_WIDTH, family_of
from textual_inversion.formats.layout import VECTOR_DTYPES, Contents, Layout, Parsed, StoredTensor, as_vectors
from textual_inversion.formats.layouts.encoders import by_width, join_rows

_MAX_TENSORS = 1_000
#: Text encoders that one model has, in the order of its vectors.
_TOGETHER = (("clip_l", "clip_g"), ("clip_h",))


def detect(contents: Contents) -> bool:
    """Whether there is a list of dicts, all of whose tensors are as wide as a text encoder's table."""
    tree = contents.tree
    if not isinstance(tree, list) or not tree or not all(isinstance(item, dict) and item for item in tree):
        return False
    values = [value for item in tree for value in item.values()]
    return len(values) <= _MAX_TENSORS and all(
        isinstance(value, StoredTensor) and value.dtype in VECTOR_DTYPES and value.shape and value.shape[-1] in ENCODER_BY_WIDTH
        for value in values
    )


def read(contents: Contents) -> list[Parsed]:
    """All rows of a width, one below the other; rows for SD2 beside those for SD1 or SDXL are an embedding of their own."""
    by_encoder: dict[str, list[StoredTensor]] = {}
    for value in [value for item in contents.tree for value in item.values()]:
        by_encoder.setdefault(ENCODER_BY_WIDTH[value.shape[-1]], []).append(value)
    families: list[dict[str, StoredTensor]] = [
        {encoder: join_rows(by_encoder[encoder]) for encoder in encoders if encoder in by_encoder} for encoders in _TOGETHER
    ]
    found = [vectors for vectors in families if vectors]
    return [Parsed(vectors, word=_family(vectors) if len(found) > 1 else None) for vectors in found]


def _family(vectors: dict[str, StoredTensor]) -> str:
    return family_of({encoder: tensor.shape[1] for encoder, tensor in vectors.items()})


def detect_alone(contents: Contents) -> bool:
    """Whether there is a tensor and nothing around it, as wide as a text encoder's table."""
    tree = contents.tree
    return isinstance(tree, StoredTensor) and len(tree.shape) in (1, 2) and tree.shape[-1] in ENCODER_BY_WIDTH


def read_alone(contents: Contents) -> list[Parsed]:
    """Its rows."""
    return [by_width(as_vectors(contents.tree, "the tensor"))]


LAYOUT = Layout("ComfyUI list", detect, read)
ALONE = Layout("tensor alone", detect_alone, read_alone)
