"""A1111's own layout: a dict whose `string_to_param` maps one placeholder to the vectors. Knows nothing of files.

The layout has no place for the initialization text, so writing it loses that one field.
"""

from __future__ import annotations

import zipfile
from io import BytesIO
from typing import Any

import torch

from textual_inversion.embedding import Embedding, Provenance, encoder_for_width
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.layout import Contents, Layout, Parsed, as_step, as_text, as_vectors

_PLACEHOLDER_ID = 265  # the id of "*" in CLIP's vocabulary
_KEPT_ENTRIES = ("/data.pkl", "/data/0", "/version")


def detect(contents: Contents) -> bool:
    """Whether there is a `string_to_param` dict."""
    return isinstance(contents.tree, dict) and isinstance(contents.tree.get("string_to_param"), dict)


def read(contents: Contents) -> list[Parsed]:
    """The one entry of `string_to_param`, whatever its placeholder.

    Raises:
        EmbeddingError: no entry, or several.
    """
    tree = contents.tree
    params = tree["string_to_param"]
    if len(params) != 1:
        words = ", ".join(repr(str(key)[:30]) for key in list(params)[:4]) or "none"
        raise EmbeddingError(f"it holds {len(params)} words ({words}) where one is expected.")
    key, value = next(iter(params.items()))
    rows = as_vectors(value, str(key)[:60])
    return [Parsed({encoder_for_width(rows.shape[1]): rows}, as_text(tree.get("name")), provenance_of(tree))]


def provenance_of(tree: dict[Any, Any]) -> Provenance:
    """What A1111's dict tells besides the vectors."""
    return Provenance(
        step=as_step(tree.get("step")),
        checkpoint_name=as_text(tree.get("sd_checkpoint_name")),
        checkpoint_hash=as_text(tree.get("sd_checkpoint")),
    )


def write(embedding: Embedding) -> bytes:
    """The file's bytes, vectors in fp32.

    Raises:
        EmbeddingError: vectors for more than one text encoder, as SDXL has.
    """
    if len(embedding.vectors) != 1:
        raise EmbeddingError("it has vectors for several text encoders, which A1111's .pt cannot hold; save it as .safetensors.")
    buffer = BytesIO()
    torch.save(tree_of(embedding), buffer)
    return _plain_zip(buffer)


def tree_of(embedding: Embedding) -> dict[str, Any]:
    """A1111's dict for an embedding with vectors for one text encoder."""
    rows = next(iter(embedding.vectors.values()))  # n d
    origin = embedding.provenance
    return {
        "string_to_token": {"*": _PLACEHOLDER_ID},
        "string_to_param": {"*": rows.clone(memory_format=torch.contiguous_format)},  # a clone, so that the storage is no larger
        "name": as_text(embedding.name),
        "step": as_step(origin.step),
        "sd_checkpoint": as_text(origin.checkpoint_hash),
        "sd_checkpoint_name": as_text(origin.checkpoint_name),
    }


def _plain_zip(source: BytesIO) -> bytes:
    """The zip with only the entries of PyTorch 1.x; A1111's safety check refuses the ones that newer versions add."""
    target = BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            if info.filename.endswith(_KEPT_ENTRIES):
                new.writestr(zipfile.ZipInfo(info.filename), old.read(info))  # a fresh ZipInfo has no clock in it
    return target.getvalue()


LAYOUT = Layout("A1111 .pt", detect, read, write, (".pt",))
