"""The training run as a whole, on random weights."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from textual_inversion import formats
from textual_inversion.errors import ConfigError, DatasetError, EmbeddingError, NonFiniteLossError, PromptError, ZeroGradientError
from textual_inversion.training.data.encoding import list_pictures
from textual_inversion.training.events import CopySaved, Message, PreviewDrawn, Started, StepDone, Stopped
from textual_inversion.training.trainer import train


def kinds(events, kind):
    return [event for event in events if isinstance(event, kind)]


def test_it_learns_and_nothing_else_changes(config, model, folder, vectors):
    start, before = vectors(), {key: value.clone() for key, value in model.unet.state_dict().items()}
    embedding = train(config, model, folder)
    assert not torch.equal(embedding.vectors["clip_l"], start)
    assert torch.equal(vectors(), embedding.vectors["clip_l"])
    assert all(torch.equal(value, before[key]) for key, value in model.unet.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for part in (model.unet, model.vae, model.text_encoder) for p in part.parameters())


def test_events_come_in_order_and_count_from_the_embeddings_step(config, model, folder):
    train(replace(config, steps=2), model, folder)
    events = []
    train(replace(config, steps=5), model, folder, listener=events.append)
    assert kinds(events, Started) == [Started("thing", 2, 5, 3, ())]
    assert [event.step for event in kinds(events, StepDone)] == [3, 4, 5]
    assert events[-1] == Stopped(5, "finished", str(folder / "thing.safetensors"))


def test_provenance_is_written(config, model, folder):
    provenance = train(config, model, folder).provenance
    assert (provenance.step, provenance.checkpoint_name, provenance.initializer_text) == (4, "random", "small cat")
    assert provenance.checkpoint_hash == model.hash
    assert formats.load(folder / "thing.safetensors").provenance == provenance


def test_the_same_seed_gives_the_same_vectors_and_another_does_not(config, model, folder):
    first = train(config, model, folder).vectors["clip_l"]
    formats.save(
        formats.load(folder / "thing.safetensors").with_vectors({"clip_l": torch.zeros(2, 64)}, step=0), folder / "zero.safetensors"
    )
    results = []
    for seed in (0, 0, 1):
        formats.save(formats.load(folder / "zero.safetensors", "thing"), folder / "thing.safetensors", overwrite=True)
        results.append(train(replace(config, seed=seed), model, folder).vectors["clip_l"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[0], first)


def test_interrupting_keeps_what_was_learned(config, model, folder, vectors):
    start, events = vectors(), []
    train(replace(config, steps=300), model, folder, listener=events.append, should_stop=lambda: len(kinds(events, StepDone)) >= 3)
    assert events[-1].reason == "interrupted"
    assert events[-1].step == 3
    assert formats.load(folder / "thing.safetensors").provenance.step == 3
    assert not torch.equal(vectors(), start)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_vectors(config, model, folder, vectors):
    good = train(replace(config, steps=2), model, folder).vectors["clip_l"]
    model.unet.out[2].bias.data[0] = float("nan")
    events = []
    with pytest.raises(NonFiniteLossError) as error:
        train(config, model, folder, listener=events.append)
    assert error.value.setting == "learning_rate"
    assert torch.equal(vectors(), good)
    assert events[-1].failed
    assert events[-1].step == 2


def test_a_gradient_that_is_exactly_zero_stops_with_the_reason(config, model, folder, vectors):
    start = vectors()
    for name, weight in model.unet.named_parameters():
        if "attn2.to_v" in name:
            weight.data.zero_()
    with pytest.raises(ZeroGradientError, match="nothing would be learned"):
        train(config, model, folder)
    assert torch.equal(vectors(), start)


def test_the_loss_table_copies_and_previews(config, model, folder, tmp_path):
    events, log = [], tmp_path / "log"
    config = replace(config, steps=6, csv_every=2, copy_every=3, preview_every=6, preview_steps=2, log_dir=str(log))
    train(config, model, folder, listener=events.append)
    with (log / "loss.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    assert set(rows[0]) == {"step", "loss", "learning_rate", "vector_norm", "steps_per_second"}
    assert [event.step for event in kinds(events, CopySaved)] == [0, 3, 6]
    copy = formats.load(log / "thing-6.safetensors")
    assert torch.equal(copy.vectors["clip_l"], formats.load(folder / "thing.safetensors").vectors["clip_l"])
    assert formats.load(log / "thing-3.safetensors").provenance.step == 3
    assert [Path(event.path).is_file() for event in kinds(events, PreviewDrawn)] == [True, True]


def test_a_log_folder_that_cannot_be_written_costs_a_message_only(config, model, folder, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    events = []
    train(replace(config, log_dir=str(tmp_path / "file" / "log"), copy_every=2), model, folder, listener=events.append)
    assert any("was not written" in event.text for event in kinds(events, Message))
    assert events[-1].reason == "finished"


def test_pictures_that_cannot_be_read_are_named_and_skipped(config, model, folder, pictures):
    (pictures / "9.png").write_bytes(b"no picture")
    events = []
    train(config, model, folder, listener=events.append)
    ((file, reason),) = kinds(events, Started)[0].skipped
    assert file == "9.png"
    assert "9.png" in reason


@pytest.mark.parametrize("method", ["once", "deterministic", "random"])
@pytest.mark.parametrize("flip", [False, True])
def test_every_way_of_sampling_latents_trains(config, model, folder, vectors, method, flip):
    start = vectors()
    train(replace(config, latent_sampling=method, flip=flip), model, folder)
    assert not torch.equal(vectors(), start)


def test_accumulation_and_clipping_train(config, model, folder):
    events = []
    config = replace(config, gradient_accumulation_steps=3, clip_mode="norm", clip_schedule="1e-9", learning_rate="0.01:2, 0.001")
    train(config, model, folder, listener=events.append)
    assert [event.learning_rate for event in kinds(events, StepDone)] == [0.01, 0.01, 0.001, 0.001]


def test_long_captions_take_more_chunks_and_shuffled_ones_too(config, model, folder, pictures, vectors):
    start = vectors()
    (pictures / "0.txt").write_text(", ".join(f"tag number {index}" for index in range(30)))
    train(replace(config, shuffle_tags=True, tag_dropout=0.2), model, folder)
    assert not torch.equal(vectors(), start)


def test_nothing_left_to_do_is_said(config, model, folder):
    train(config, model, folder)
    with pytest.raises(ConfigError) as error:
        train(config, model, folder)
    assert error.value.setting == "steps"


@pytest.mark.parametrize(
    ("change", "kind"),
    [({"name": "nobody"}, EmbeddingError), ({"images": "/does/not/exist"}, DatasetError), ({"template": "/does/not/exist"}, PromptError)],
)
def test_bad_input_is_one_sentence_and_loses_nothing(config, model, folder, vectors, change, kind):
    start = vectors()
    with pytest.raises(kind) as caught:
        train(replace(config, **change), model, folder)
    assert caught.value.path == (folder if "name" in change else Path(*change.values()))
    assert "\n" not in str(caught.value)
    assert torch.equal(vectors(), start)


def test_a_template_without_the_name_is_refused(config, model, folder, tmp_path):
    template = tmp_path / "template.txt"
    template.write_text("a photo of [filewords]\n")
    with pytest.raises(PromptError) as error:
        train(replace(config, template=str(template)), model, folder)
    assert (str(error.value.path), error.value.setting) == (str(template), "template")


def test_an_embedding_of_another_width_is_refused(config, model, folder):
    wide = formats.load(folder / "thing.safetensors").with_vectors({"clip_l": torch.ones(1, 768)})
    formats.save(wide, folder / "thing.safetensors", overwrite=True)
    with pytest.raises(EmbeddingError, match="made for SD1"):
        train(config, model, folder)


def test_a_run_continues_a_pt_file_in_place(config, model, folder):
    embedding = formats.load(folder / "thing.safetensors")
    (folder / "thing.safetensors").unlink()
    formats.save(embedding, folder / "thing.pt")
    train(config, model, folder)
    assert formats.load(folder / "thing.pt").provenance.step == 4
    assert not (folder / "thing.safetensors").exists()


def test_the_optimizer_goes_on_where_it_stopped(config, model, folder):
    events = []
    train(replace(config, save_optimizer=True), model, folder, listener=events.append)
    state = torch.load(folder / "thing.safetensors.optim", weights_only=True)
    assert state["optimizer_state_dict"]["state"][0]["step"] == 4
    train(replace(config, save_optimizer=True, steps=6), model, folder, listener=events.append)
    state = torch.load(folder / "thing.safetensors.optim", weights_only=True)
    assert state["optimizer_state_dict"]["state"][0]["step"] == 6
    assert not any("begins anew" in event.text for event in kinds(events, Message))


def test_previews_have_their_own_sampler_and_size(config, model, folder, tmp_path):
    config = replace(config, steps=2, preview_every=2, preview_steps=2, preview_sampler="Euler", preview_width=128, log_dir=str(tmp_path))
    train(config, model, folder)
    with Image.open(tmp_path / "thing-2.png") as picture:
        assert picture.size == (128, 64)


def test_words_of_file_names_are_the_filewords(config, model, folder, pictures):
    (pictures / "0.png").rename(pictures / "12-fox_snow.png")
    listed = list_pictures(replace(config, filename_regex="[a-z]+", filename_join=", "))
    assert [picture.caption for picture in listed.pictures][-1] == "fox, snow"
    with pytest.raises(ConfigError, match="is no pattern"):
        replace(config, filename_regex="(")


def test_steps_left_to_auto_fit_the_checkpoint(model, folder, config):
    events, config = [], replace(config, method="pulled", steps="auto")
    train(config, model, folder, listener=events.append, should_stop=lambda: True)
    assert kinds(events, Started)[0].last_step == 150
    path, learned = folder / "thing.safetensors", formats.load(folder / "thing.safetensors")
    formats.save(learned.with_vectors(learned.vectors, step=150, checkpoint_name="random", checkpoint_hash=None), path, overwrite=True)
    with pytest.raises(ConfigError, match="set steps above that") as caught:
        train(config, model, folder)
    assert caught.value.setting == "steps"
