"""The `string_to_param` layouts: A1111's own, and the original textual inversion layout from which it comes.

A1111's `string_to_param` maps one placeholder to the vectors. The file has no field for the initialization text, so writing loses it.
The original layout uses a `torch.nn.ParameterDict` with one or several words. Each word is an embedding; A1111 refuses several.
The attributes of a pickled `ParameterDict` vary between versions of torch, but all versions keep the tensors in `_parameters`.
DreamArtist writes A1111's layout twice: `X.pt` for the prompt and `X-neg.pt` for the negative prompt.
"""

from __future__ import annotations

import zipfile
from io import BytesIO
from typing import Any

import torch

from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.tensors import Contents, Parameters
from textual_inversion.formats.layout import Keys, Layout, Parsed, as_step, as_text, as_vectors
from textual_inversion.formats.layouts.encoder_tensors import by_width

STRING_TO_PARAM = Keys(has={"string_to_param": dict})
_PLACEHOLDER_ID = 265  # the id of "*" in CLIP's vocabulary
_KEPT_ENTRIES = ("/data.pkl", "/data/0", "/version")


def read(contents: Contents) -> list[Parsed]:
    """Read the only entry of `string_to_param`, whatever its placeholder.

    Raises:
        EmbeddingError: there is no entry, or more than one.
    """
    tree = contents.tree
    params = tree["string_to_param"]
    if len(params) != 1:
        words = ", ".join(repr(str(key)[:30]) for key in list(params)[:4]) or "none"
        raise EmbeddingError(f"it holds {len(params)} words ({words}) where one is expected.")
    ((key, value),) = params.items()
    vectors = by_width(as_vectors(value, str(key)[:60])).vectors
    return [Parsed(vectors, as_text(tree.get("name")), provenance_of(tree))]


def read_original(contents: Contents) -> list[Parsed]:
    """Read every word of `string_to_param`, in the file's order.

    Raises:
        EmbeddingError: a word has no vectors.
    """
    params = contents.tree["string_to_param"]
    if len(params) == 1:
        return read(contents)
    provenance = provenance_of(contents.tree)
    return [
        Parsed(by_width(as_vectors(value, str(key)[:60])).vectors, as_text(key), provenance, word=str(key)[:200])
        for key, value in params.items()
    ]


def provenance_of(tree: dict[Any, Any]) -> Provenance:
    """Read the provenance from A1111's dict."""
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
    written, plain = BytesIO(), BytesIO()
    torch.save(tree_of(embedding), written)
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(plain, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            if info.filename.endswith(_KEPT_ENTRIES):  # A1111's safety check refuses entries of newer PyTorch versions
                new.writestr(zipfile.ZipInfo(info.filename), old.read(info))  # a new ZipInfo has a fixed date
    return plain.getvalue()


def tree_of(embedding: Embedding) -> dict[str, Any]:
    """A1111's dict for an embedding with vectors for one text encoder."""
    rows = next(iter(embedding.vectors.values()))  # n d
    origin = embedding.provenance
    return {
        "string_to_token": {"*": _PLACEHOLDER_ID},
        "string_to_param": {"*": rows.clone(memory_format=torch.contiguous_format)},  # cloned, so the storage has no other data
        "name": as_text(embedding.name),
        "step": as_step(origin.step),
        "sd_checkpoint": as_text(origin.checkpoint_hash),
        "sd_checkpoint_name": as_text(origin.checkpoint_name),
    }


def _is_original(contents: Contents) -> bool:
    params = contents.tree["string_to_param"]
    return len(params) > 1 or (len(params) == 1 and isinstance(params, Parameters))


ORIGINAL = Layout("original .pt", read_original, keys=(STRING_TO_PARAM,), when=_is_original, before=("A1111 .pt",))
A1111 = Layout(
    "A1111 .pt",
    read,
    keys=(STRING_TO_PARAM,),
    before=("text encoders", "emb_params", "OneTrainer", "in a LoRA", "no embedding"),
    write=write,
    endings=(".pt",),
)
