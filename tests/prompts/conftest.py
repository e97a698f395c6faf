"""Shared by the prompt tests: the shipped tokenizer, built once, and transformers' tokenizer on the same merges."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from textual_inversion.prompts.tokenizer import MERGES_FILE, Tokenizer, default_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return default_tokenizer()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokenizer.vocabulary)}), encoding="utf-8")
    merges = gzip.decompress(MERGES_FILE.read_bytes()).decode()
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    return transformers.CLIPTokenizerFast.from_pretrained(str(folder), local_files_only=True)
