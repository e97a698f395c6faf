"""Names files that are given as checkpoints but are something else: by their first bytes, or by the names in them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from textual_inversion.errors import CheckpointError, TextualInversionError, UnsupportedCheckpointError
from textual_inversion.other_files import is_unfinished, other_file

_DOWNLOAD = "download it again"
_ANOTHER = "choose a Stable Diffusion checkpoint"
_ONNX = tuple(bytes((8, version, 18)) for version in range(1, 16))  # version, then the name of the program that wrote it
#: Endings of files that downloading programs have not finished.
_UNFINISHED = (".part", ".crdownload", ".aria2", ".tmp", ".download", ".incomplete", ".!ut")
#: Names in a file -> which single part of a model it holds, and which folder it usually lies in. All names of a line must be there.
_PARTS = (
    (("input_blocks.0.0.weight", "out.2.weight"), "only the UNet of a checkpoint"),
    (("down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"), "only the UNet of a diffusers folder"),
    (("encoder.down_blocks.0.resnets.0.conv1.weight",), "only the VAE of a diffusers folder"),
    (("text_model.embeddings.token_embedding.weight",), "only a text encoder"),
    (("embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.weight"), "only a text encoder"),
)
_MOST_EMBEDDING_BYTES = 64 * 2**20


def stranger(path: Path, head: bytes, size: int) -> CheckpointError:
    """The error for a file that no reader of tensors recognises.

    Args:
        head: its first bytes, some hundred.
        size: its length in bytes.
    """
    if known := other_file(head):
        kind = UnsupportedCheckpointError if known.quantized else CheckpointError
        advice = known.advice or (f"{_ANOTHER} in fp16 or fp32" if known.quantized else _ANOTHER)
        return kind(f"{path.name} is {known.what}; {advice}.", path=path)
    if path.suffix.lower() == ".onnx" or (head.startswith(_ONNX) and head[3:4] < b"\x40"):
        return UnsupportedCheckpointError(f"{path.name} is an ONNX file, which cannot be trained on; {_ANOTHER}.", path=path)
    if path.suffix.lower() in _UNFINISHED:
        return CheckpointError(f"{path.name} is a download that has not ended; wait for it, or {_DOWNLOAD}.", path=path)
    if is_unfinished(head):
        return CheckpointError(f"{path.name} begins with zeros, as a download that has not ended does; {_DOWNLOAD}.", path=path)
    sentence = f"{path.name} ({size:,} bytes) is not a .safetensors file and no file of torch.save; download it again or {_ANOTHER}."
    return CheckpointError(sentence, path=path)


def not_a_checkpoint(path: Path, keys: Iterable[str], expected: str) -> CheckpointError:
    """The error for a file of tensors that holds none of a checkpoint's.

    Args:
        keys: the names in it.
        expected: the names of a checkpoint, for the sentence.
    """
    names = set(keys)
    if part := next((what for wanted, what in _PARTS if names.issuperset(wanted)), ""):
        return CheckpointError(f"{path.name} holds {part}; {_whole_of(path)}.", path=path)
    if kind := _kind(path, names):
        return CheckpointError(f"{path.name} is {kind[0]}, no checkpoint; {kind[1]}, so {_ANOTHER}.", path=path)
    sample = ", ".join(sorted(names)[:3])[:200] or "nothing"
    counted = f"it holds {len(names)} tensors such as {sample}"
    return CheckpointError(f"{path.name} is no Stable Diffusion checkpoint: {counted}; expected {expected}.", path=path)


def _whole_of(path: Path) -> str:
    """Where the rest of a single part may be."""
    folder = path.absolute().parent.parent
    return f"give the whole folder, {folder}" if (folder / "model_index.json").is_file() else "give a whole checkpoint"


def _kind(path: Path, names: set[str]) -> tuple[str, str] | None:
    """What a file is, and where it belongs."""
    from textual_inversion.formats import describe_all
    from textual_inversion.formats.layouts.foreign_files import kind_of_file

    if found := kind_of_file(names):
        return found[0], f"it belongs into {found[1]}"
    try:
        embeddings = describe_all(path) if path.stat().st_size <= _MOST_EMBEDDING_BYTES else []
    except (TextualInversionError, OSError):
        return None
    is_one = any(embedding.family for embedding in embeddings)  # of a width that some text encoder has
    return ("an embedding", "it belongs into embeddings") if is_one else None
