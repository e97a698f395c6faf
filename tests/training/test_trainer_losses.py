"""What a run does when something goes wrong on the way: nothing that was learned is lost, and one sentence says what happened."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from textual_inversion import formats
from textual_inversion.diffusion.model import load_checkpoint
from textual_inversion.errors import EmbeddingError, InvalidNameError, NonFiniteLossError, TrainingError
from textual_inversion.training import recorder, run, trainer
from textual_inversion.training.embedding_file import create_embedding
from textual_inversion.training.events import Message, Started, StepDone, Stopped
from textual_inversion.training.step import TrainedVectors
from textual_inversion.training.stepper import Stepper
from textual_inversion.training.trainer import train


@pytest.fixture
def file(folder):
    return folder / "thing.safetensors"


@pytest.fixture
def home(tmp_path, monkeypatch):
    path = tmp_path / "home"
    path.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(path))
    return path


def texts(events):
    return [event.text for event in events if isinstance(event, Message)]


def full_disk(monkeypatch, where: Path, after: int = 0):
    """Let writing embeddings into the folder `where` fail, from the `after`th time on."""
    write, count = formats.save, [0]

    def save(embedding, path, **options):
        count[0] += Path(path).parent == where
        if Path(path).parent == where and count[0] > after:
            raise EmbeddingError(f"{path} was not written: the disk is full; free some space and try again.")
        return write(embedding, path, **options)

    monkeypatch.setattr(formats, "save", save)


def change_readings(monkeypatch, change):
    """Let the run read other numbers than the device computed; `change` receives the step, counted from 1, and its reading."""
    read, steps = TrainedVectors.read, itertools.count(1)
    monkeypatch.setattr(TrainedVectors, "read", lambda self, number: [change(next(steps), reading) for reading in read(self, number)])


def test_vectors_that_broke_the_loss_are_not_kept(config, model, folder, vectors):
    start, events = vectors(), []
    with pytest.raises(NonFiniteLossError, match="step 2"):
        train(replace(config, learning_rate="1e38"), model, folder, listener=events.append)
    assert torch.equal(vectors(), start)
    assert (events[-1].step, events[-1].failed) == (0, True)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1]


@pytest.mark.parametrize("read_every", [1, 10])
def test_the_last_vectors_with_a_finite_loss_are_kept(config, model, folder, vectors, file, monkeypatch, read_every):
    good = train(replace(config, steps=3), model, folder).vectors["clip_l"]
    create_embedding(model, "thing", "small cat", 2, folder, overwrite=True)
    monkeypatch.setitem(trainer._READ_EVERY, "cpu", read_every)
    change_readings(monkeypatch, lambda step, reading: reading._replace(loss=float("nan")) if step >= 5 else reading)
    events = []
    with pytest.raises(NonFiniteLossError, match="step 5"):
        train(replace(config, steps=20), model, folder, listener=events.append)
    assert torch.equal(vectors(), good)
    assert events[-1].step == formats.load(file).provenance.step == 3
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4]


def test_gradients_that_are_never_finite_stop_it(config, model, folder, monkeypatch):
    change_readings(monkeypatch, lambda step, reading: reading._replace(gradient=float("nan")))
    with pytest.raises(TrainingError, match="was not finite in the 20 steps up to 20"):
        train(replace(config, steps=300), model, folder)


def test_an_overflow_now_and_then_does_not(config, model, folder, monkeypatch):
    change_readings(monkeypatch, lambda step, reading: reading._replace(gradient=float("inf")) if step % 3 else reading)
    assert train(replace(config, steps=40), model, folder).provenance.step == 40


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_whatever_a_listener_raises_the_vectors_are_written(config, model, folder, vectors, file, error):
    start = vectors()

    def listener(event):
        if isinstance(event, StepDone) and event.step == 3:
            raise error

    with pytest.raises(type(error)):
        train(replace(config, steps=9), model, folder, listener=listener)
    assert formats.load(file).provenance.step == 3
    assert not torch.equal(vectors(), start)


def test_a_disk_that_is_full_at_the_start_is_told_before_training(config, model, folder, monkeypatch):
    full_disk(monkeypatch, folder)
    events = []
    with pytest.raises(EmbeddingError, match="the disk is full"):
        train(config, model, folder, listener=events.append)
    assert not [event for event in events if isinstance(event, StepDone)]


def test_a_disk_that_is_full_at_the_end_sends_the_vectors_elsewhere(config, model, folder, home, vectors, monkeypatch):
    start, events = vectors(), []
    full_disk(monkeypatch, folder, after=1)
    with pytest.raises(EmbeddingError, match=r"the disk is full.*until step 4 is in .*thing-4-rescued\.safetensors") as caught:
        train(config, model, folder, listener=events.append)
    assert "\n" not in str(caught.value)
    rescued = formats.load(home / "thing-4-rescued.safetensors")
    assert rescued.provenance.step == 4
    assert not torch.equal(rescued.vectors["clip_l"], start)
    assert events[-1] == Stopped(4, str(caught.value), str(home / "thing-4-rescued.safetensors"), failed=True)


def test_what_another_program_has_learned_meanwhile_stays_and_ours_is_kept_elsewhere(config, model, folder, file, home):
    theirs = torch.full_like(formats.load(file).vectors["clip_l"], 0.5)

    def listener(event):
        if isinstance(event, StepDone) and event.step == 2:
            formats.save(formats.load(file).with_vectors({"clip_l": theirs}, step=100), file, overwrite=True)

    with pytest.raises(EmbeddingError, match=r"thing\.safetensors was written by another program .* step 4 is in .*rescued\.safetensors"):
        train(config, model, folder, listener=listener)
    assert torch.equal(formats.load(file).vectors["clip_l"], theirs)
    assert formats.load(file).provenance.step == 100
    assert formats.load(home / "thing-4-rescued.safetensors").provenance.step == 4


def test_what_another_program_writes_while_pictures_are_encoded_stays(config, model, folder, file):
    theirs = formats.load(file)
    theirs = theirs.with_vectors({"clip_l": torch.full_like(theirs.vectors["clip_l"], 0.5)}, step=100)

    def listener(event):
        if isinstance(event, Started):
            formats.save(theirs, file, overwrite=True)

    with pytest.raises(EmbeddingError) as error:
        train(config, model, folder, listener=listener)
    assert error.value.path == file
    assert formats.load(file).provenance.step == 100


@pytest.mark.parametrize("kind", ["touched", "gone", "damaged"])
def test_a_file_that_holds_nothing_of_anothers_is_written_over(config, model, folder, file, kind):
    def listener(event):
        if isinstance(event, StepDone) and event.step == 2:
            if kind == "touched":
                file.write_bytes(file.read_bytes())
            elif kind == "gone":
                file.unlink()
            else:
                file.write_bytes(b"")

    train(config, model, folder, listener=listener)
    assert formats.load(file).provenance.step == 4


def test_both_reasons_are_told_when_two_things_fail(config, model, folder, home, monkeypatch):
    full_disk(monkeypatch, folder, after=1)
    with pytest.raises(NonFiniteLossError, match=r"loss became nan.*disk is full.*rescued"):
        train(replace(config, learning_rate="1e38"), model, folder)


def test_a_save_on_the_way_that_fails_costs_a_message(config, model, folder, monkeypatch):
    monkeypatch.setattr(run, "SAVE_SECONDS", -1.0)
    write, count, events = formats.save, [0], []

    def save(*arguments, **options):
        count[0] += 1
        if count[0] == 3:
            raise EmbeddingError("the disk is full")
        return write(*arguments, **options)

    monkeypatch.setattr(formats, "save", save)
    assert train(config, model, folder, listener=events.append).provenance.step == 4
    assert "the disk is full" in texts(events)
    assert events[-1].reason == "finished"


def test_a_lost_device_costs_what_was_not_read(config, model, folder, file, monkeypatch):
    current = run.Run._current

    def lost(self):
        if self.done >= 3:
            raise RuntimeError("CUDA error: the launch failed")
        return current(self)

    def listener(event):
        if isinstance(event, StepDone) and event.step == 3:
            raise RuntimeError("CUDA error: the launch failed")

    monkeypatch.setattr(run.Run, "_current", lost)
    with pytest.raises(RuntimeError, match="CUDA error"):
        train(replace(config, steps=9), model, folder, listener=listener)
    assert formats.load(file).provenance.step == 2


def test_a_checkpoint_file_that_goes_away_costs_its_hash_only(config, checkpoint, folder, tmp_path, file):
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(checkpoint.read_bytes())
    model = load_checkpoint(moved, device="cpu")
    moved.unlink()
    events = []
    provenance = train(config, model, folder, listener=events.append).provenance
    assert (provenance.step, provenance.checkpoint_name, provenance.checkpoint_hash) == (4, "moved", None)
    assert any("hash" in text for text in texts(events))


def test_a_preview_that_does_not_fit_the_device_costs_a_message(config, model, folder, tmp_path, monkeypatch):
    def draw(*_arguments, **_options):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(recorder, "draw_prompts", draw)
    events = []
    train(replace(config, preview_every=1, log_dir=str(tmp_path / "log")), model, folder, listener=events.append)
    assert [text for text in texts(events) if "preview" in text] == ["The preview was not written: the device ran out of memory."]
    assert events[-1].reason == "finished"


def test_memory_that_runs_out_is_one_sentence(config, model, folder, file, monkeypatch):
    step, count = Stepper.run, [0]

    def runs_out(self, number):
        count[0] += 1
        if count[0] == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return step(self, number)

    monkeypatch.setattr(Stepper, "run", runs_out)
    with pytest.raises(TrainingError) as caught:
        train(config, model, folder)
    assert caught.value.setting == "batch_size"
    assert "\n" not in str(caught.value)
    assert formats.load(file).provenance.step == 2


def test_an_interrupt_while_pictures_are_encoded_ends_it_there(config, model, folder, file):
    before, events = file.read_bytes(), []
    train(config, model, folder, listener=events.append, should_stop=lambda: True)
    assert events[-1] == Stopped(0, "interrupted", str(file))
    assert file.read_bytes() == before


def test_copies_without_a_log_directory_are_told(config, model, folder):
    events = []
    train(replace(config, copy_every=2), model, folder, listener=events.append)
    assert any("log directory" in text for text in texts(events))


@pytest.mark.parametrize("name", ["../embeddings/thing", "..\\thing", "sub/thing", "/thing"])
def test_a_name_with_a_path_in_it_is_refused(config, model, folder, name):
    with pytest.raises(InvalidNameError) as error:
        train(replace(config, name=name), model, folder)
    assert error.value.setting == "name"
