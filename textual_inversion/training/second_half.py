"""An SD1 embedding for SDXL: its vectors for the first text encoder, and those of words for the second one, which it has never seen."""

from __future__ import annotations

import os
from dataclasses import replace

from textual_inversion.diffusion.checkpoint import token_tables
from textual_inversion.embedding import Embedding
from textual_inversion.errors import CheckpointError, ConfigError, EmbeddingError
from textual_inversion.prompts.tokenizer import default_tokenizer
from textual_inversion.settings.creation import wants_search
from textual_inversion.training.embedding_file import initial_vectors

_HALVES = {"clip_l", "clip_g"}


def for_sdxl(embedding: Embedding, checkpoint: str | os.PathLike[str], words: str = "") -> Embedding:
    """The embedding with vectors for both text encoders of SDXL.

    Zeros are no neutral word: no row of a token table is near them. So the second text encoder gets the rows of words that say what the
    embedding is. Where there are fewer words than vectors, they repeat.

    Args:
        embedding: of SD1.
        checkpoint: of SDXL, whose token table has the rows; nothing else of it is read.
        words: what the embedding is, such as `cat`; empty = the text that it was initialized with.

    Raises:
        ConfigError: no words are known, or the checkpoint is not one of SDXL.
        EmbeddingError: the embedding is not one of SD1, or not as wide as the checkpoint's first text encoder.
        CheckpointError: a file that is no checkpoint.
    """
    tables = token_tables(checkpoint)
    if set(tables) != _HALVES:
        raise CheckpointError(f"{os.path.basename(checkpoint)} has {' and '.join(tables)}; expected a checkpoint of SDXL.")
    width = tables["clip_l"].shape[1]
    if embedding.widths != {"clip_l": width}:
        found = ", ".join(f"{encoder} {wide} wide" for encoder, wide in embedding.widths.items())
        reason = f"{embedding.name!r} holds vectors for {found}; expected those of SD1 only, for clip_l {width} wide"
        raise EmbeddingError(f"{reason}. Only such embeddings need a second half.")
    known = words or embedding.provenance.initializer_text or ""
    if wants_search(known) or not default_tokenizer().encode(known):
        reason = f"Nothing says in words what {embedding.name!r} is, which SDXL's second text encoder needs"
        raise ConfigError(f"{reason}; give a word or two (--words).", setting="words")
    second = initial_vectors(tables["clip_g"], known, embedding.num_vectors)
    provenance = replace(embedding.provenance, checkpoint_name=None, checkpoint_hash=None, initializer_text=known)
    return Embedding(embedding.name, {**embedding.vectors, "clip_g": second}, provenance)
