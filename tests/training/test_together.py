"""Several embeddings in one run: each learns, reports and ends as in a run of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from textual_inversion import formats
from textual_inversion.errors import ConfigError, EmbeddingError, NonFiniteLossError
from textual_inversion.training.embedding_file import create_embedding
from textual_inversion.training.events import CopySaved, Started, StepDone, Stopped
from textual_inversion.training.step import TrainedVectors
from textual_inversion.training.trainer import train, train_together


@pytest.fixture
def other_pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "others"
    folder.mkdir()
    for index, colour in enumerate(("yellow", "purple")):
        picture = Image.new("RGB", (64, 64), colour)
        picture.paste("black", (20, 8, 40, 10 + 20 * index))
        picture.save(folder / f"{index}.png")
    return folder


@pytest.fixture
def configs(config, other_pictures, model, folder):
    """Two embeddings with pictures, batches, schedules and ends of their own."""
    create_embedding(model, "other", "big dog", 3, folder)
    return [
        replace(config, steps=4),
        replace(config, name="other", images=str(other_pictures), steps=6, batch_size=3, seed=7, learning_rate="0.01:2, 0.002"),
    ]


def kinds(events, kind):
    return [event for _, event in events if isinstance(event, kind)]


def fresh(model, folder):
    create_embedding(model, "thing", "small cat", 2, folder, overwrite=True)
    create_embedding(model, "other", "big dog", 3, folder, overwrite=True)


def test_each_learns_what_it_learns_alone(configs, model, folder):
    alone = [train(config, model, folder).vectors["clip_l"] for config in configs]
    fresh(model, folder)
    starts = [formats.load(folder / f"{config.name}.safetensors").vectors["clip_l"] for config in configs]
    both = train_together(configs, model, folder)
    for embedding, expected, start in zip(both, alone, starts):
        assert (embedding.vectors["clip_l"] - expected).abs().max() < 1e-5
        assert (expected - start).abs().max() > 1e-3
    assert [formats.load(folder / f"{name}.safetensors").provenance.step for name in ("thing", "other")] == [4, 6]


def test_events_say_whose_they_are(configs, model, folder):
    events = []
    train_together(configs, model, folder, listener=lambda name, event: events.append((name, event)))
    assert [(name, event.name) for name, event in events if isinstance(event, Started)] == [("thing", "thing"), ("other", "other")]
    steps = {name: [event.step for whose, event in events if whose == name and isinstance(event, StepDone)] for name in ("thing", "other")}
    assert steps == {"thing": [1, 2, 3, 4], "other": [1, 2, 3, 4, 5, 6]}
    rates = [event.learning_rate for name, event in events if name == "other" and isinstance(event, StepDone)]
    assert rates == [0.01, 0.01, 0.002, 0.002, 0.002, 0.002]
    assert [event.reason for event in kinds(events, Stopped)] == ["finished", "finished"]


def test_one_that_fails_leaves_the_others_alone(configs, model, folder, monkeypatch):
    expected = train_together(configs, model, folder)[1].vectors["clip_l"]
    fresh(model, folder)
    read = TrainedVectors.read

    def broken(self, count):
        rows = read(self, count)
        return [row._replace(loss=float("nan")) for row in rows] if len(self.vectors) == 2 else rows

    monkeypatch.setattr(TrainedVectors, "read", broken)
    events = []
    with pytest.raises(NonFiniteLossError, match="step 1"):
        train_together(configs, model, folder, listener=lambda name, event: events.append((name, event)))
    stopped = dict((name, event) for name, event in events if isinstance(event, Stopped))
    assert (stopped["thing"].failed, stopped["thing"].step) == (True, 0)
    assert (stopped["other"].failed, stopped["other"].step) == (False, 6)
    # one batch of both was planned before the failure was read, so the sums of that step differ in their last bits
    assert (formats.load(folder / "other.safetensors").vectors["clip_l"] - expected).abs().max() < 1e-5


def test_an_interrupt_keeps_all(configs, model, folder):
    events = []

    def stop() -> bool:
        return len(kinds(events, StepDone)) >= 4

    train_together(configs, model, folder, listener=lambda name, event: events.append((name, event)), should_stop=stop)
    assert [formats.load(folder / f"{name}.safetensors").provenance.step for name in ("thing", "other")] == [2, 2]
    assert [event.reason for event in kinds(events, Stopped)] == ["interrupted", "interrupted"]


def test_an_error_that_nobody_expected_keeps_all(configs, model, folder):
    def listener(name, event):
        if isinstance(event, StepDone) and event.step == 3 and name == "other":
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        train_together(configs, model, folder, listener=listener)
    assert [formats.load(folder / f"{name}.safetensors").provenance.step for name in ("thing", "other")] == [3, 3]


def test_copies_and_states_are_each_ones_own(configs, model, folder, tmp_path):
    every = {"thing": 2, "other": 3}
    own = [{"copy_every": every[config.name], "log_dir": str(tmp_path / config.name)} for config in configs]
    configs = [replace(config, save_optimizer=True, **changes) for config, changes in zip(configs, own)]
    events = []
    train_together(configs, model, folder, listener=lambda name, event: events.append((name, event)))
    assert sorted((name, event.step) for name, event in events if isinstance(event, CopySaved)) == [
        ("other", 0),
        ("other", 3),
        ("other", 6),
        ("thing", 0),
        ("thing", 2),
        ("thing", 4),
    ]
    for name, step in (("thing", 4), ("other", 6)):
        state = torch.load(folder / f"{name}.safetensors.optim", weights_only=True)
        assert state["optimizer_state_dict"]["state"][0]["step"] == step


@pytest.mark.parametrize(
    ("change", "setting"), [({"name": "thing"}, "name"), ({"clip_skip": 2}, "clip_skip"), ({"gradient_accumulation_steps": 2}, None)]
)
def test_what_cannot_be_trained_together_is_refused(configs, model, folder, change, setting):
    configs[1] = replace(configs[1], **change)
    with pytest.raises(ConfigError) as error:
        train_together(configs, model, folder)
    assert error.value.setting == (setting or next(iter(change)))


def test_a_missing_embedding_is_said_before_any_picture_is_encoded(configs, model, folder):
    events = []
    configs[1] = replace(configs[1], name="nobody")
    with pytest.raises(EmbeddingError):
        train_together(configs, model, folder, listener=lambda name, event: events.append(event))
    assert events == []
