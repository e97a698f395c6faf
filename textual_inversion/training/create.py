"""Makes new embeddings from the words they start with. Knows nothing of training."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from textual_inversion import formats
from textual_inversion.diffusion.checkpoint import CheckpointFile, token_tables
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.embedding import MAX_VECTORS, Embedding, Provenance, check_name
from textual_inversion.errors import ConfigError, EmbeddingError, NameTakenError
from textual_inversion.prompts.tokenizer import default_tokenizer

#: What to tell of an embedding for which `knows_no_word` is true; a part of a sentence.
UNKNOWN_WORDS = "this checkpoint knows none of these words, so it starts from zeros: other words would help"


def initial_vectors(table: torch.Tensor, initializer_text: str, num_vectors: int | str = "auto") -> torch.Tensor:
    """Rows of a token table for the words of a text.

    Args:
        table: [l, d], with CLIP's vocabulary.
        initializer_text: words such as `cat`; empty = zeros.
        num_vectors: 1 to 75, or `auto` for as many as the text has tokens. With more vectors than tokens the tokens repeat,
            with fewer the last ones are left out.

    Returns:
        fp32 [n, d] on the CPU.

    Raises:
        ConfigError: a count outside 1 to 75.
    """
    tokens = default_tokenizer().encode(initializer_text)
    count = _count(num_vectors, len(tokens))
    if not tokens:
        return torch.zeros(count, table.shape[1])
    rows = torch.tensor([tokens[index % len(tokens)] for index in range(count)])
    return table.detach()[rows.to(table.device)].to("cpu", torch.float32)


def _count(num_vectors: int | str, tokens: int) -> int:
    if num_vectors == "auto":
        return min(max(tokens, 1), MAX_VECTORS)
    try:
        count = int(num_vectors)
    except (TypeError, ValueError):
        raise ConfigError(f"The number of vectors is {num_vectors!r}; give a number from 1 to {MAX_VECTORS}, or 'auto'.") from None
    if not 1 <= count <= MAX_VECTORS:
        raise ConfigError(f"The number of vectors is {count}; it must be from 1 to {MAX_VECTORS}, the places of one chunk of a prompt.")
    return count


def create_embedding(
    model: StableDiffusion | str | os.PathLike[str],
    name: str,
    initializer_text: str,
    num_vectors: int | str,
    folder: Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a new embedding, untrained, as `folder/name.safetensors`; the folder is made if need be.

    Args:
        model: a loaded checkpoint, or the file of one, of which only the token tables are read; with SDXL both of them.

    Raises:
        InvalidNameError: a name that cannot be one.
        NameTakenError: an embedding of that name exists, in any layout, and `overwrite` is false. When it is true, a file of another
            layout that holds that embedding and nothing else is deleted, so that the name means the new one in every program.
        ConfigError: a count outside 1 to 75.
        CheckpointError: a file that is no checkpoint.
        EmbeddingError: the folder cannot be made, the file cannot be written, or the one before cannot be deleted.
    """
    check_name(name)
    if isinstance(model, StableDiffusion):
        file, tables = model.file, {model.conditioner.encoder_name: model.text_encoder.token_table}
    else:
        file, tables = CheckpointFile.open(model), token_tables(model)
    vectors = {encoder: initial_vectors(table, initializer_text, num_vectors) for encoder, table in tables.items()}
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddingError(f"The folder {folder} cannot be made ({error.strerror}); choose another folder for embeddings.") from error
    taken = _files_of(folder, name)
    if taken and not overwrite:
        raise NameTakenError(f"There is an embedding {taken[0].name} in {folder}; choose another name or allow overwriting (--overwrite).")
    provenance = Provenance(step=0, checkpoint_name=file.name, checkpoint_hash=file.hash, initializer_text=initializer_text)
    path = formats.save(Embedding(name, vectors, provenance), folder / f"{name}.safetensors", overwrite=overwrite)
    for old in taken:
        if not _same_file(old, path) and _is_replaced(old):
            _delete(old)
    return path


def knows_no_word(path: Path, initializer_text: str) -> bool:
    """Whether the new embedding in `path` is all zeros although it was to start from words; False for a file of another kind."""
    if not initializer_text:
        return False
    try:
        return not any(bool(rows.any()) for rows in formats.load(path).vectors.values())
    except EmbeddingError:
        return False


def _files_of(folder: Path, name: str) -> list[Path]:
    """The files that give `name` its meaning, or may; endings may have capitals."""
    return sorted(path for path in folder.iterdir() if path.stem == name and path.suffix.lower() in formats.READ_ENDINGS)


def _is_replaced(path: Path) -> bool:
    """Whether the file is the embedding of its own name and nothing else: not a picture, a preview mostly, nor one beside other data."""
    if path.suffix.lower() in formats.PICTURE_ENDINGS:
        return False
    try:
        return all(info.word is None for info in formats.describe_all(path))
    except EmbeddingError:
        return False


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)  # as a disk that ignores case sees it


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise EmbeddingError(
            f"The new embedding is written, but {path} of the same name cannot be deleted ({error.strerror}); delete it."
        ) from error
