"""What the fuzzer and its kept corpus are fed to: every byte string is read as a file, to the last vector. Knows no layout."""

from __future__ import annotations

from pathlib import Path

from textual_inversion.errors import EmbeddingError
from textual_inversion.formats import registry
from textual_inversion.formats.containers.file_bytes import FileBytes

_PATH = Path("fuzzed.pt")


def read_everything(data: bytes) -> int:
    """How many embeddings `data` holds; 0 when it is refused. Any error but `EmbeddingError` is a fault of a reader."""
    try:
        layout, found = registry._parse(FileBytes(data))
        for parsed in found:
            registry._info(_PATH, layout, parsed, len(data))
            if not parsed.unusable:
                registry._read(parsed, _PATH, None)
    except EmbeddingError as error:
        if len(str(error)) > 600 or not str(error).endswith("."):
            raise AssertionError(f"not one short sentence: {error}") from error
        return 0
    return len(found)
