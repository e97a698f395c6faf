"""Drawing from prompt to pixels: against diffusers' modules and scheduler, and what seeds, batches and interruption promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from tests.support.checkpoints import write_checkpoint
from tests.support.references import diffusers_unet, diffusers_vae, transformers_clip
from textual_inversion.diffusion.generate import draw_prompts, generate, to_pictures
from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
from textual_inversion.embedding import Embedding
from textual_inversion.errors import ConfigError, EmbeddingError
from textual_inversion.settings.generation import SAMPLERS, GenerationSettings

SETTINGS: dict[str, Any] = {"steps": 4, "width": 64, "height": 72, "cfg_scale": 5.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors"), device="cpu", precision="fp32")


def settings(prompt: str = "a red circle", **changes: Any) -> GenerationSettings:
    return GenerationSettings(prompt, **SETTINGS | changes)


def difference(a: Image.Image, b: Image.Image) -> int:
    assert a.size == b.size
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


@torch.no_grad()
def drawn_by_diffusers(model: StableDiffusion, wanted: GenerationSettings) -> Image.Image:
    """The same picture with the modules and the scheduler of diffusers and transformers."""
    unet, vae, clip = model.unet, model.vae, model.text_encoder
    denoiser, decoder = diffusers_unet(unet.config, unet.state_dict()), diffusers_vae(vae.config, vae.state_dict())
    encoder = transformers_clip(clip.config, clip.state_dict())
    tokenize = model.conditioner.tokenizer.encode
    ids = torch.tensor(
        [[49406, *tokenize(text), *[49407] * (76 - len(tokenize(text)))] for text in (wanted.negative_prompt, wanted.prompt)]
    )
    context = encoder(input_ids=ids).last_hidden_state
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace")
    scheduler.set_timesteps(wanted.steps)
    shape = (1, 4, wanted.height // 8, wanted.width // 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(wanted.seed)) * scheduler.sigmas[0]
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep)
        negative, positive = denoiser(torch.cat((scaled, scaled)), timestep, context).sample.chunk(2)
        x = scheduler.step(negative + wanted.cfg_scale * (positive - negative), timestep, x).prev_sample
    pixels = decoder.decode(x / 0.18215).sample[0].clamp(-1, 1).permute(1, 2, 0)
    return Image.fromarray(((pixels + 1) * 127.5).round().to(torch.uint8).numpy())


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_a_picture_is_the_one_that_diffusers_draws(model: StableDiffusion) -> None:
    wanted = settings(sampler="Euler", negative_prompt="a blue square", seed=11)
    (picture,) = generate(model, wanted, {})
    assert picture.size == (64, 72)
    assert np.asarray(picture).std() > 5
    assert difference(picture, drawn_by_diffusers(model, wanted)) <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_gives_the_same_picture_alone_and_in_a_batch(model: StableDiffusion, sampler: str) -> None:
    pictures = generate(model, settings(sampler=sampler, seed=5, count=3), {})
    assert len(pictures) == 3
    for offset, picture in enumerate(pictures):
        (alone,) = generate(model, settings(sampler=sampler, seed=5 + offset), {})
        assert difference(picture, alone) <= 1
    assert difference(pictures[0], pictures[1]) > 10


def test_prompts_of_different_length_share_a_batch(model: StableDiffusion) -> None:
    long = ", ".join(["a green star"] * 30)
    together = draw_prompts(model, [("a red circle", 1), (long, 2)], settings(), {})
    assert difference(together[1], generate(model, settings(long, seed=2), {})[0]) <= 1


def test_without_guidance_the_negative_prompt_says_nothing(model: StableDiffusion) -> None:
    one, other = (generate(model, settings(cfg_scale=1.0, negative_prompt=text), {})[0] for text in ("", "a blue square"))
    assert difference(one, other) <= 1


def test_an_embedding_changes_the_picture_only_where_it_is_named(model: StableDiffusion) -> None:
    known = {"mine": Embedding("mine", {"clip_l": torch.randn(2, 64)})}
    without, named, unnamed = (
        generate(model, settings(prompt), embeddings)[0] for prompt, embeddings in (("a cat", {}), ("a mine", known), ("a cat", known))
    )
    assert difference(without, unnamed) == 0
    assert difference(without, named) > 2


def test_an_embedding_for_another_model_is_refused(model: StableDiffusion) -> None:
    with pytest.raises(EmbeddingError, match="'wide' was made for SD1"):
        generate(model, settings("a wide"), {"wide": Embedding("wide", {"clip_l": torch.zeros(1, 768)})})


def test_only_the_embeddings_that_the_prompts_name_are_loaded(model: StableDiffusion) -> None:
    loaded: list[str] = []

    class Loading(dict[str, Embedding]):
        def __getitem__(self, name: str) -> Embedding:
            loaded.append(name)
            return super().__getitem__(name)

    shelf = Loading({name: Embedding(name, {"clip_l": torch.zeros(1, 64)}) for name in ("cat", "dog", "bird")})
    generate(model, settings("a <Cat:1.2>", negative_prompt="dog"), shelf)
    assert sorted(set(loaded)) == ["cat", "dog"]


def test_progress_is_told_after_each_step(model: StableDiffusion) -> None:
    told: list[tuple[int, int]] = []
    generate(model, settings(), {}, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_stopping_gives_no_pictures(model: StableDiffusion) -> None:
    told: list[int] = []
    assert generate(model, settings(), {}, progress=lambda done, total: told.append(done), should_stop=lambda: len(told) == 2) == []
    assert told == [1, 2]


@pytest.mark.parametrize("wrong", [
    {"steps": 0}, {"steps": 151}, {"cfg_scale": 0.5}, {"width": 56}, {"width": 100}, {"height": 2056}, {"seed": -1}, {"seed": 2**32},
    {"count": 0}, {"clip_skip": 0}, {"sampler": "DPM fast"}, {"cfg_scale": float("nan")},
], ids=str)  # fmt: skip
def test_settings_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        settings(**wrong)


def test_pixels_are_rounded_and_clamped() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(1, 3, 1, 5)
    (picture,) = to_pictures(pixels)
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_model_of_random_weights_loads_from_a_path_as_text(tmp_path: Path) -> None:
    assert load_checkpoint(str(write_checkpoint(tmp_path / "a.safetensors"))).name == "a"
