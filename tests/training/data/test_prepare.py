"""From a folder to steps: sizes, weights, stored latents, bad pictures; and that the plain way has stayed what it was."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from textual_inversion import formats
from textual_inversion.diffusion.conditioning import VectorTable
from textual_inversion.errors import ConfigError, DatasetError
from textual_inversion.pictures.folder import caption_for
from textual_inversion.prompts.templates import DEFAULT_TEMPLATE, drop_tags, fill, read_template, shuffle_tags, template_folder
from textual_inversion.training.data.batches import BatchMaker, DataOrder, PromptMaker
from textual_inversion.training.data.encoding import encode_pictures, list_pictures
from textual_inversion.training.events import Message, Started, StepDone
from textual_inversion.training.optimizer import AdamW
from textual_inversion.training.step import TrainingStep
from textual_inversion.training.trainer import train


def kinds(events, kind):
    return [event for event in events if isinstance(event, kind)]


def plainly(config, model, embedding) -> torch.Tensor:
    """Vectors as one loop over pictures of one size gives them: no buckets, weights, crops or stores."""
    lines = read_template(template_folder() / DEFAULT_TEMPLATE)
    table = VectorTable.of({config.name: embedding}, {"clip_l": 64}, "cpu")
    paths = sorted(Path(config.images).glob("*.png"))
    fitted = [ImageOps.fit(Image.open(path).convert("RGB"), (config.width, config.height), Image.Resampling.LANCZOS) for path in paths]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in fitted])
    pixels = torch.cat((pixels, pixels.flip(-1))) if config.flip else pixels
    with torch.no_grad():
        encoded = [model.vae.encode_moments(some.float() / 127.5 - 1) for some in pixels.split(len(paths))]
    mean = torch.cat([mean for mean, _ in encoded]) * model.vae.scale_factor
    std = torch.cat([(0.5 * logvar).exp() for _, logvar in encoded]) * model.vae.scale_factor
    fixed = torch.randn(mean.shape, generator=torch.Generator().manual_seed(config.seed + 1))
    order = DataOrder(len(paths), config.batch_size, torch.Generator().manual_seed(config.seed))
    rng, generator = random.Random(config.seed), torch.Generator().manual_seed(config.seed + 2)
    vectors = table.vectors.clone().requires_grad_()
    optimizer = AdamW(vectors, 0.0)
    optimizer.learning_rate.fill_(float(config.learning_rate))
    chunks = max(model.conditioner.tokenize([fill(line, "<thing>", caption_for(path))], table).chunks for line in lines for path in paths)
    for _ in range(config.steps):
        pictures = order.next_batch()
        rows = torch.tensor([picture + len(paths) * (config.flip and rng.random() < 0.5) for picture in pictures])
        shape = (len(rows), *mean.shape[1:])
        drawn = torch.randn(shape, generator=generator) if config.latent_sampling == "random" else fixed[rows]
        latents = mean[rows] if config.latent_sampling == "deterministic" else torch.addcmul(mean[rows], std[rows], drawn)
        timesteps = torch.randint(1000, (len(rows),), generator=generator)
        noise = torch.randn(shape, generator=generator)
        texts = []
        for picture in pictures:
            caption = caption_for(paths[picture])
            caption = drop_tags(caption, config.tag_dropout, rng) if config.tag_dropout else caption
            caption = shuffle_tags(caption, rng) if config.shuffle_tags else caption
            texts.append(fill(rng.choice(lines), "<thing>", caption))
        context = model.conditioner.encode(model.conditioner.tokenize(texts, table, chunks), vectors).context
        loss = F.mse_loss(model.unet(model.schedule.mix(latents, noise, timesteps), timesteps, context), noise)
        optimizer.step(torch.autograd.grad(loss, vectors)[0])
    return vectors.detach()


@pytest.mark.parametrize(
    "changes",
    [{}, {"flip": True, "latent_sampling": "random"}, {"latent_sampling": "deterministic", "shuffle_tags": True, "tag_dropout": 0.3}],
    ids=["defaults", "mirrored", "tags"],
)
def test_the_plain_way_is_bit_for_bit_what_it_was(config, model, folder, changes):
    config = replace(config, steps=20, width=96, **changes)
    expected = plainly(config, model, formats.load(folder / "thing.safetensors"))
    assert torch.equal(train(config, model, folder).vectors["clip_l"], expected)


def test_buckets_and_own_sizes_train_and_the_same_seed_gives_the_same(config, model, folder, pictures):
    for index, size in enumerate(((64, 128), (128, 64), (72, 200))):
        Image.effect_noise(size, 90).save(pictures / f"more-{index}.png")
    zero = formats.load(folder / "thing.safetensors")
    results = []
    for changes in ({"buckets": True, "bucket_step": 8}, {"no_resize": True}, {"crops": 3}, {"crops": 3}):
        formats.save(zero, folder / "thing.safetensors", overwrite=True)
        events = []
        results.append(train(replace(config, steps=6, **changes), model, folder, listener=events.append).vectors["clip_l"])
        assert kinds(events, Started)[0].images == 6
        assert not torch.equal(results[-1], zero.vectors["clip_l"])
    assert torch.equal(results[2], results[3])
    assert not torch.equal(results[1], results[2])


def masked(path: Path) -> None:
    """Only a part of the left half is opaque, on a picture that is not square."""
    picture = Image.effect_noise((128, 64), 90).convert("RGBA")
    alpha = Image.new("L", (128, 64))
    alpha.paste(255, (8, 16, 40, 48))
    picture.putalpha(alpha)
    picture.save(path)


def test_weights_reach_the_loss_the_right_way_round(config, model, pictures, monkeypatch):
    """The gradient of the loss by the prediction is zero exactly where the picture is transparent, mirrored or not."""
    for path in pictures.iterdir():
        path.unlink()
    masked(pictures / "a.png")
    config = replace(config, width=128, height=64, alpha_weight=True, flip=True)
    data = encode_pictures(config, model, list_pictures(config), lambda event: None, lambda: False)
    weights = data.buckets[0].weights
    assert weights.shape == (2, 1, 8, 16)
    expected = torch.zeros(8, 16)
    expected[2:6, 1:5] = 128 / 16
    torch.testing.assert_close(weights[0, 0], expected)
    torch.testing.assert_close(weights[1, 0], expected.flip(-1))
    seen = []
    original = type(model.unet).forward

    def watched(self, *given):
        predicted = original(self, *given)
        predicted.register_hook(seen.append)
        return predicted

    monkeypatch.setattr(type(model.unet), "forward", watched)
    table = VectorTable.of({}, {"clip_l": 64}, "cpu")
    maker = BatchMaker(config, data.buckets, PromptMaker(config, ["[name]"], data.captions, model.conditioner, table), noise_device="cpu")
    batch = maker.next()
    step = TrainingStep(model, torch.zeros(1, 64), config)
    prompts = model.conditioner.tokenize(["thing"] * 2, VectorTable(torch.ones(1, 64), {"thing": 0}, {"thing": 1}))
    torch.autograd.grad(step.loss(replace(batch, prompts=prompts)), step.vectors)
    (gradient,) = seen
    assert torch.equal(gradient.abs().sum(dim=1, keepdim=True) > 0, batch.weights > 0)


def test_pictures_of_which_nothing_counts_are_left_out_and_named(config, model, folder, pictures):
    Image.new("L", (80, 64)).save(pictures / "1-mask.png")
    events = []
    train(replace(config, alpha_weight=True), model, folder, listener=events.append)
    (started,) = kinds(events, Started)
    assert started.images == 2
    assert started.skipped[0][0] == "1.png"
    assert "its mask is black" in started.skipped[0][1]


def test_latents_are_kept_for_the_next_run(config, model, folder, pictures, tmp_path, monkeypatch):
    config = replace(config, latent_cache=str(tmp_path / "kept"))
    zero = formats.load(folder / "thing.safetensors")
    first = train(config, model, folder).vectors["clip_l"]
    formats.save(zero, folder / "thing.safetensors", overwrite=True)
    monkeypatch.setattr(type(model.vae), "encode_moments", lambda *given: pytest.fail("encoded again"))
    events = []
    assert torch.equal(train(config, model, folder, listener=events.append).vectors["clip_l"], first)
    assert "Latents of 3 of 3 pictures were there from an earlier run" in [event.text for event in kinds(events, Message)]
    assert sorted(path.name for path in pictures.iterdir()) == [f"{index}.{ending}" for index in range(3) for ending in ("png", "txt")]


def test_latents_that_cannot_be_kept_cost_a_message(config, model, folder, tmp_path):
    (tmp_path / "file").write_text("")
    events = []
    train(replace(config, latent_cache=str(tmp_path / "file")), model, folder, listener=events.append)
    assert sum("cannot be written" in event.text for event in kinds(events, Message)) == 1
    assert len(kinds(events, StepDone)) == 4


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the huge one
def test_every_bad_picture_is_named_and_the_rest_goes_on(config, model, folder, pictures):
    good = (pictures / "0.png").read_bytes()
    (pictures / "cut.png").write_bytes(good[: len(good) // 2])
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "text.png").write_text("a text")
    (pictures / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    Image.new("1", (12_000, 12_000)).save(pictures / "huge.png")
    Image.new("CMYK", (80, 64)).save(pictures / "cmyk.jpg")
    Image.fromarray(np.full((64, 80), 40_000, np.uint16)).save(pictures / "deep.png")
    events = []
    train(config, model, folder, listener=events.append)
    (started,) = kinds(events, Started)
    assert started.images == 5
    reasons = dict(started.skipped)
    words = {"cut": "cut short", "empty": "0 bytes", "text": "not a PNG", "phone": "save it as JPEG", "huge": "120 million"}
    assert {name.split(".")[0] for name in reasons} == set(words)
    assert all(words[name.split(".")[0]] in reason for name, reason in reasons.items())


def test_settings_that_contradict_each_other(config):
    with pytest.raises(ConfigError, match="choose one of the two"):
        replace(config, buckets=True, no_resize=True)
    for name, value in {"background": "sky-ish", "bucket_step": 12, "crops": 17}.items():
        with pytest.raises(ConfigError) as error:
            replace(config, **{name: value})
        assert error.value.setting == name
    with pytest.raises(DatasetError) as missing:
        list_pictures(replace(config, images="/does/not/exist", subfolders=True))
    assert missing.value.path == Path("/does/not/exist")
