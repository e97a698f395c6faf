"""Where an embedding came from, as short texts beside its vectors. Knows nothing of files.

The keys, all optional:

    ti_name             the embedding's name; never trusted over the file's name
    ti_step             optimizer steps trained
    sd_checkpoint_name  the checkpoint it was trained on, without ending
    sd_checkpoint       first 10 hex digits of that checkpoint's sha256
    initializer_text    the words that the vectors started from

`sd_checkpoint` and `sd_checkpoint_name` are spelt as in A1111's `.pt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.formats.layout import Contents, Parsed, as_step, as_text


def metadata_of(embedding: Embedding) -> dict[str, str]:
    """What is known of `embedding` besides its vectors, cleaned by `as_text` and `as_step`."""
    origin = embedding.provenance
    texts = {
        "ti_name": as_text(embedding.name),
        "ti_step": None if (step := as_step(origin.step)) is None else str(step),
        "sd_checkpoint_name": as_text(origin.checkpoint_name),
        "sd_checkpoint": as_text(origin.checkpoint_hash),
        "initializer_text": as_text(origin.initializer_text),
    }
    return {key: text for key, text in texts.items() if text is not None}


def provenance_in(texts: Mapping[str, object]) -> Provenance:
    """The provenance that `texts` tell; what they lack or spell wrongly is unknown."""
    return Provenance(
        step=as_step(texts.get("ti_step")),
        checkpoint_name=as_text(texts.get("sd_checkpoint_name")),
        checkpoint_hash=as_text(texts.get("sd_checkpoint")),
        initializer_text=as_text(texts.get("initializer_text")),
    )


def beside(contents: Contents, parsed: Parsed) -> Parsed:
    """`parsed` with the name and the provenance that its file tells: in a safetensors header, or spelt as in A1111's `.pt`."""
    tree = contents.tree if isinstance(contents.tree, dict) else {}
    texts: Mapping[str, object] = contents.metadata or {"ti_name": tree.get("name"), "ti_step": tree.get("step"), **tree}
    return replace(parsed, stored_name=parsed.stored_name or as_text(texts.get("ti_name")), provenance=provenance_in(texts))
