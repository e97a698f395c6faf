"""What a library tells of the last training run of its embeddings."""

from __future__ import annotations

from pathlib import Path

import torch

from textual_inversion import formats
from textual_inversion.app.cards import card_of
from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.last_run import LastRun, last_run_file
from textual_inversion.library import EmbeddingLibrary


def saved(folder: Path, step: int) -> Path:
    return formats.save(
        Embedding("tulip", {"clip_l": torch.ones(1, 768)}, Provenance(step=step)), folder / "tulip.safetensors", overwrite=True
    )


def test_a_verdict_is_that_of_the_vectors_in_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, 60)
    LastRun({"images": "/tulips"}, 60, "fair", "Still improving.").write(last_run_file(path))
    library = EmbeddingLibrary([tmp_path])
    (entry,) = library.entries()
    assert (entry.last_run.verdict, entry.last_run.settings["images"]) == ("Still improving.", "/tulips")
    assert (card_of(entry).level, card_of(entry).verdict) == ("fair", "Still improving.")
    assert entry.notes == ""  # it is no note of a person
    saved(tmp_path, 90)  # another program has trained it on
    (entry,) = library.rescan()
    assert (entry.last_run.verdict, entry.last_run.level) == ("", "")
    assert entry.last_run.settings["images"] == "/tulips"


def test_the_notes_of_an_embedding_with_such_a_name_stay_notes(tmp_path: Path) -> None:
    formats.save(Embedding("x.training", {"clip_l": torch.ones(1, 768)}), tmp_path / "x.training.safetensors")
    (tmp_path / "x.training.json").write_text('{"description": "mine"}')
    (entry,) = EmbeddingLibrary([tmp_path]).entries()
    assert (entry.notes, entry.last_run) == ("mine", LastRun())
