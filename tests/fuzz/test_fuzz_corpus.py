"""What a coverage-guided fuzzer found worth keeping is read again: a refusal or an embedding, never another error."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests.fuzz.target import read_everything


def test_kept_bytes_are_read_or_refused() -> None:
    with zipfile.ZipFile(Path(__file__).parent / "corpus.zip") as archive:
        read = {name: read_everything(archive.read(name)) for name in archive.namelist()}
    assert len(read) > 400
    assert any(read.values())
