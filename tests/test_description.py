"""The one description of an embedding: its line, its labels, and the keys that the command line and the API share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from textual_inversion.cli import main
from textual_inversion.description import LABELS, EmbeddingDescription
from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.formats import describe, save
from textual_inversion.hosts.webui.api_models import EmbeddingAnswer, InspectAnswer, embedding_answer, inspect_answer
from textual_inversion.library import EmbeddingLibrary


@pytest.fixture
def file(tmp_path: Path) -> Path:
    origin = Provenance(300, "v1-5-pruned", "6ce0161689", "small cat")
    return save(Embedding("cat", {"clip_l": torch.ones(2, 768)}, origin), tmp_path / "cat.safetensors")


@pytest.mark.parametrize(
    ("description", "line"),
    [
        (EmbeddingDescription(), ""),
        (EmbeddingDescription(1, "SD1"), "1 vector · SD1"),
        (EmbeddingDescription(2, "SD1", 0), "2 vectors · SD1"),
        (EmbeddingDescription(2, "SDXL", 300), "2 vectors · SDXL · step 300"),
    ],
)
def test_the_line_has_the_known_facts(description: EmbeddingDescription, line: str) -> None:
    assert description.line() == line
    assert description.line("", "negative") == f"{line} · negative".removeprefix(" · ")


def test_a_file_and_its_embedding_have_the_same_facts(file: Path) -> None:
    of_file, of_embedding = describe(file).description, describe(file).provenance.describe(2, "SD1")
    assert of_file.summary() == of_embedding.summary() == {"num_vectors": 2, "family": "SD1", "step": 300, "checkpoint": "v1-5-pruned"}
    assert (of_file.checkpoint_hash, of_file.initializer_text, of_file.widths) == ("6ce0161689", "small cat", {"clip_l": 768})


def test_labels_are_in_order_and_only_for_known_facts(file: Path) -> None:
    labels = list(describe(file).description.labelled())
    assert labels == [label for label in LABELS.values() if label in labels]
    assert "name inside" not in EmbeddingDescription(2, "SD1").labelled()


def test_the_command_line_and_the_api_use_the_same_keys(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = EmbeddingLibrary([file.parent]).entries()
    facts = entry.description.to_dict()
    assert main(["list", "--embeddings", str(file.parent), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["embeddings"]
    assert main(["inspect", str(file), "--json"]) == 0
    (inspected,) = json.loads(capsys.readouterr().out)["embeddings"]
    for answer, keys in (
        (row, entry.description.summary()),
        (embedding_answer(entry, [file.parent]), entry.description.summary()),
        (inspected, facts),
        (inspect_answer(entry, [file.parent], ""), facts),
    ):
        assert {key: answer[key] for key in keys} == {key: facts[key] for key in keys}
    assert set(entry.description.summary()) <= set(EmbeddingAnswer.__annotations__)
    assert set(facts) <= {*EmbeddingAnswer.__annotations__, *InspectAnswer.__annotations__}
