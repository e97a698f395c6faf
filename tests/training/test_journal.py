"""The journal of a run: whole after any cut, taken over by the next run, and of nobody else's vectors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion import formats
from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.training.journal import Journal, Note, base_of, fingerprint, journal_file, read_notes, recover
from textual_inversion.training.optimizer import AdamW
from textual_inversion.training.state import has_state_of, load_optimizer, optimizer_file, save_optimizer

SHAPE = (2, 768)


def vectors(seed: int) -> dict[str, torch.Tensor]:
    return {"clip_l": torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))}


def saved(folder: Path, step: int = 10) -> tuple[Path, Embedding]:
    embedding = Embedding("cat", vectors(0), Provenance(step=step))
    return formats.save(embedding, folder / "cat.safetensors", overwrite=True), embedding


def journal(path: Path) -> Journal:
    return Journal(path, lambda sentence: pytest.fail(sentence))


def note(path: Path, embedding: Embedding, step: int, **more: Any) -> Note:
    return Note(step, vectors(step), base_of(path, embedding.vectors), ("clip_l",), **more)


def test_the_next_run_goes_on_from_the_last_note(tmp_path: Path) -> None:
    path, embedding = saved(tmp_path)
    kept = journal(path)
    for step in (11, 12, 13):
        kept.write(note(path, embedding, step))
    recovered, sentence = recover(path, embedding)
    assert "step 13" in sentence
    assert recovered.provenance.step == 13
    assert torch.equal(formats.load(path).vectors["clip_l"], vectors(13)["clip_l"])
    again, sentence = recover(path, formats.load(path))
    assert (again.provenance.step, sentence) == (13, "")


def test_a_file_that_has_everything_or_was_replaced_is_left_alone(tmp_path: Path) -> None:
    path, embedding = saved(tmp_path)
    written = note(path, embedding, 11)
    journal(path).write(written)
    for step, other in ((10, vectors(5)), (11, vectors(0))):
        theirs = Embedding("cat", other, Provenance(step=step))
        formats.save(theirs, path, overwrite=True)
        os.utime(path, ns=(1, 1))
        assert recover(path, theirs) == (theirs, "")
    formats.save(embedding, path, overwrite=True)  # the same vectors, written at another time, as by creating the word anew
    os.utime(path, ns=(2, 2))
    assert recover(path, embedding) == (embedding, "")


@pytest.mark.parametrize(
    "wrong", [{"clip_l": torch.zeros(3, 768)}, {"clip_g": torch.zeros(SHAPE)}, {"clip_l": torch.full(SHAPE, torch.nan)}]
)
def test_vectors_that_do_not_fit_or_are_no_numbers_are_left_alone(tmp_path: Path, wrong: dict[str, torch.Tensor]) -> None:
    path, embedding = saved(tmp_path)
    journal(path).write(Note(99, wrong, base_of(path, embedding.vectors)))
    assert recover(path, embedding) == (embedding, "")


def test_the_optimizers_state_comes_back_with_its_vectors(tmp_path: Path) -> None:
    path, embedding = saved(tmp_path)
    optimizer = AdamW(embedding.vectors["clip_l"].clone())
    save_optimizer(optimizer_file(path), optimizer)
    optimizer.learning_rate.fill_(0.1)
    optimizer.step(torch.ones(SHAPE))
    learned = {"clip_l": optimizer.vectors}
    journal(path).write(Note(11, learned, base_of(path, embedding.vectors), ("clip_l",), optimizer.state_dict()))
    recover(path, embedding)
    other = AdamW(optimizer.vectors.clone())
    assert load_optimizer(optimizer_file(path), other) == ""
    assert torch.equal(other.mean, optimizer.mean)
    assert torch.equal(other.steps, optimizer.steps)


def test_a_run_that_was_killed_between_its_two_files_keeps_the_optimizers_state(tmp_path: Path) -> None:
    path, embedding = saved(tmp_path)
    optimizer = AdamW(vectors(11)["clip_l"])
    journal(path).write(Note(11, {"clip_l": optimizer.vectors}, base_of(path, embedding.vectors), ("clip_l",), optimizer.state_dict()))
    newer = Embedding("cat", vectors(11), Provenance(step=11))
    formats.save(newer, path, overwrite=True)
    assert recover(path, newer) == (newer, "")
    assert has_state_of(optimizer_file(path), optimizer.vectors)


def test_of_two_places_one_is_whole_wherever_the_writing_stops(tmp_path: Path) -> None:
    path, embedding = saved(tmp_path)
    kept = journal(path)
    for step in (11, 12):
        kept.write(note(path, embedding, step))
    before = journal_file(path).read_bytes()
    kept.write(note(path, embedding, 13))
    after = journal_file(path).read_bytes()
    for cut in range(0, len(after), 997):
        journal_file(path).write_bytes(after[:cut] + before[cut:])
        assert read_notes(journal_file(path))[0].step in (12, 13)


@given(data=st.binary(max_size=200), tail=st.booleans())
def test_a_journal_of_any_bytes_is_no_reason_to_fail(tmp_path_factory: pytest.TempPathFactory, data: bytes, tail: bool) -> None:
    path = tmp_path_factory.mktemp("journal") / "x.journal"
    path.write_bytes(b"TIJ1" + data if tail else data)
    assert read_notes(path) == []


def test_a_note_is_what_was_written() -> None:
    made = Note(7, vectors(1), "base", ("clip_l",), {"steps": torch.tensor(7.0), "mean": torch.ones(SHAPE)})
    read = Note.from_bytes(made.to_bytes())
    assert (read.step, read.base, read.encoders) == (7, "base", ("clip_l",))
    assert fingerprint(read.vectors) == fingerprint(made.vectors)
    assert float(read.state["steps"].reshape(())) == 7


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="access is not denied to this user")
def test_a_folder_that_denies_it_costs_one_message(tmp_path: Path) -> None:
    path, embedding = saved(tmp_path)
    tmp_path.chmod(0o500)
    told = _written_twice(path, embedding)
    tmp_path.chmod(0o700)
    assert len(told) == 1


def test_a_pipe_in_its_place_costs_one_message(tmp_path: Path) -> None:
    path, embedding = saved(tmp_path)
    os.mkfifo(journal_file(path))
    (told,) = _written_twice(path, embedding)
    assert "cannot be written" in told
    assert recover(path, embedding) == (embedding, "")


def _written_twice(path: Path, embedding: Embedding) -> list[str]:
    told: list[str] = []
    append: Callable[[str], None] = told.append
    kept = Journal(path, append)
    for step in (11, 12):
        if kept.is_due():
            kept.write(note(path, embedding, step))
    return told
