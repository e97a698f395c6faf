"""What the fuzzer and its kept corpus are fed to: every byte string is read as a file, to the last vector."""

from __future__ import annotations

from pathlib import Path

from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.file_bytes import FileBytes
from textual_inversion.formats.embedding_files import info_of, parse_file, read_vectors

_PATH = Path("fuzzed.pt")


def read_everything(data: bytes) -> int:
    """How many embeddings `data` holds; 0 when it is refused. Any error but `EmbeddingError` is a fault of a reader."""
    try:
        layout, embeddings = parse_file(FileBytes(data))
        for parsed in embeddings:
            info_of(_PATH, layout, parsed, len(data))
            if not parsed.unusable:
                read_vectors(parsed, _PATH, None)
    except EmbeddingError as error:
        if len(error.reason) > 600 or not error.reason.endswith("."):
            raise AssertionError(f"not one short sentence: {error.reason}") from error
        return 0
    return len(embeddings)
