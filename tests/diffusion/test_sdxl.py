"""SDXL checkpoints: two text encoders, a pooled vector and sizes, against transformers and diffusers; embeddings for both encoders."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import XL_FIRST, XL_SECOND, XL_UNET, random_module, random_state, shapes_of, write_sdxl
from tests.support.references import apart, diffusers_unet, transformers_clip
from textual_inversion import formats
from textual_inversion.diffusion.checkpoint import CheckpointFile, check_family, checkpoint_facts, token_tables
from textual_inversion.diffusion.clip import CLIPConfig
from textual_inversion.diffusion.conditioning import TextConditioner, picture_sizes, size_label
from textual_inversion.diffusion.generate import generate
from textual_inversion.diffusion.graphs import GraphCache
from textual_inversion.diffusion.model import StableDiffusion, WordSize, load_checkpoint
from textual_inversion.diffusion.unet import UNet, UNetConfig
from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError, UnsupportedCheckpointError
from textual_inversion.prompts.tokenizer import END, default_tokenizer
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.embedding_file import create_embedding
from textual_inversion.training.events import Event, StepDone
from textual_inversion.training.methods import optimizer_of
from textual_inversion.training.preflight import preflight
from textual_inversion.training.trainer import train

WIDTHS = {"clip_l": 768, "clip_g": 1280}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sdxl(tmp_path_factory.mktemp("sdxl") / "sdxl.safetensors")


@pytest.fixture(scope="module")
def sdxl(path: Path) -> StableDiffusion:
    return load_checkpoint(path, device="cpu", precision="fp32")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (colour, size) in enumerate((("red", (96, 64)), ("blue", (64, 80)), ("green", (64, 64)))):
        Image.new("RGB", size, colour).save(folder / f"{number}.png")
    return folder


def words(seed: int = 5, count: int = 2) -> Embedding:
    generator = torch.Generator().manual_seed(seed)
    return Embedding("zorb", {encoder: torch.randn(count, width, generator=generator) for encoder, width in WIDTHS.items()})


def test_the_family_the_widths_and_the_sizes(sdxl: StableDiffusion, path: Path) -> None:
    assert (sdxl.family, sdxl.widths, sdxl.prediction.name, sdxl.notes) == ("SDXL", WIDTHS, "epsilon", ())
    assert checkpoint_facts(path).widths == WIDTHS
    assert {encoder: table.shape[1] for encoder, table in token_tables(path).items()} == WIDTHS
    assert [encoder.config for encoder in sdxl.conditioner.encoders.values()] == [XL_FIRST, XL_SECOND]
    assert sdxl.unet.config == XL_UNET
    assert sdxl.vae.scale_factor == 0.13025


def reference_conditioning(
    prompt_ids: torch.Tensor, second_ids: torch.Tensor, conditioner: TextConditioner
) -> tuple[torch.Tensor, torch.Tensor]:
    """What diffusers' SDXL pipeline makes of token ids: states of the layer before the last of both encoders, and the pooled vector."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    first, second = conditioner.encoders.values()
    states = transformers_clip(first.config, first.state_dict())(input_ids=prompt_ids, output_hidden_states=True).hidden_states[-2]
    sizes = {"vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 4 * 1280, "num_attention_heads": 20}
    sizes["num_hidden_layers"] = second.config.layers
    config = CLIPTextConfig(**sizes, hidden_act="gelu", projection_dim=1280, eos_token_id=END)
    theirs = CLIPTextModelWithProjection(config).eval()
    state = dict(second.state_dict())
    state["text_projection.weight"] = state.pop("text_projection").T
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("position_ids" in key for key in missing)
    out = theirs(input_ids=second_ids, output_hidden_states=True)
    return torch.cat((states, out.hidden_states[-2]), dim=-1), out.text_embeds


@torch.no_grad()
def test_the_conditioning_is_that_of_transformers(sdxl: StableDiffusion) -> None:
    table = sdxl.conditioner.table_of({})
    tokens = sdxl.conditioner.tokenize(["a red star on a hill", "cat"], table)
    ids = tokens.tokens.ids
    after_end = (ids == END).cumsum(1) > 1
    ours = sdxl.conditioner.encode(tokens, table.vectors)
    context, pooled = reference_conditioning(ids, ids.masked_fill(after_end, 0), sdxl.conditioner)
    assert ours.pooled is not None
    assert apart(ours.context, context) < 1e-4
    assert apart(ours.pooled, pooled) < 1e-4


@torch.no_grad()
def test_vectors_stand_for_new_tokens_in_both_encoders(sdxl: StableDiffusion) -> None:
    """An embedding means what it would mean as rows of both token tables, as diffusers loads it."""
    embedding = words()
    table = sdxl.conditioner.table_of({"zorb": embedding})
    tokens = sdxl.conditioner.tokenize(["a zorb star"], table)
    ours = sdxl.conditioner.encode(tokens, table.vectors)
    ids = sdxl.conditioner.tokenize(["a cat dog star"], sdxl.conditioner.table_of({})).tokens.ids
    replaced = ids[0, 2:4]
    tables = [encoder.token_table for encoder in sdxl.conditioner.encoders.values()]
    before = [each[replaced].clone() for each in tables]
    try:
        for each, vectors in zip(tables, embedding.vectors.values()):
            each[replaced] = vectors
        context, pooled = reference_conditioning(ids, ids.masked_fill((ids == END).cumsum(1) > 1, 0), sdxl.conditioner)
    finally:
        for each, rows in zip(tables, before):
            each[replaced] = rows
    assert ours.pooled is not None
    assert apart(ours.context, context) < 1e-4
    assert apart(ours.pooled, pooled) < 1e-4


@torch.no_grad()
def test_the_unet_is_diffusers_with_its_own_time_ids(sdxl: StableDiffusion) -> None:
    generator = torch.Generator().manual_seed(2)
    pooled, sizes = torch.randn(2, 1280, generator=generator), torch.tensor([[1024, 768, 0, 128, 1024, 1024], [512, 512, 0, 0, 512, 512]])
    x, context = torch.randn(2, 4, 16, 12, generator=generator), torch.randn(2, 77, 2048, generator=generator)
    options = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "class_embed_type": None}
    theirs = diffusers_unet(XL_UNET, sdxl.unet.state_dict(), **options)
    added = {"text_embeds": pooled, "time_ids": sizes}
    expected = theirs(x, torch.tensor([3, 800]), context, added_cond_kwargs=added).sample
    ours = sdxl.unet(x, torch.tensor([3, 800]), context, size_label(pooled, sizes))
    assert apart(ours, expected) < 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_a_full_unet_and_both_full_encoders_are_those_of_diffusers_and_transformers() -> None:
    """SDXL's own sizes, random weights, fp32; one part after the other, in 20 GB."""
    table_of_rows = 49408
    first = CLIPConfig(fixed_layer=11, final_norm=False)
    second = CLIPConfig(table_of_rows, 1280, 32, quick_gelu=False, fixed_layer=31, final_norm=False, projection=1280)
    encoders: dict[str, Any] = {"clip_l": random_module(first), "clip_g": random_module(second)}
    conditioner = TextConditioner(encoders, default_tokenizer())
    table = conditioner.table_of({})
    tokens = conditioner.tokenize(["a red star on a hill"], table)
    ours, ids = conditioner.encode(tokens, table.vectors), tokens.tokens.ids
    context, pooled = reference_conditioning(ids, ids.masked_fill((ids == END).cumsum(1) > 1, 0), conditioner)
    assert ours.pooled is not None
    assert apart(ours.context, context) < 1e-4
    assert apart(ours.pooled, pooled) < 1e-4
    del conditioner, encoders
    config = replace(
        XL_UNET, model_channels=320, channel_mult=(1, 2, 4), num_res_blocks=(2, 2, 2), transformer_depth=(0, 2, 10), middle_depth=10
    )
    unet: Any = random_module(config)
    sizes, x = torch.tensor([[1024, 768, 0, 128, 1024, 1024]]), torch.randn(1, 4, 24, 16, generator=torch.Generator().manual_seed(1))
    options = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "class_embed_type": None}
    theirs = diffusers_unet(config, unet.state_dict(), **options)
    expected = theirs(x, torch.tensor([800]), context, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
    assert apart(unet(x, torch.tensor([800]), context, size_label(pooled, sizes)), expected) < 1e-4


def test_sizes_of_whole_pictures() -> None:
    assert picture_sizes([(640, 480)], "cpu").tolist() == [[480, 640, 0, 0, 480, 640]]


def test_an_embedding_is_created_trained_and_drawn(sdxl: StableDiffusion, path: Path, tmp_path: Path, pictures: Path) -> None:
    create_embedding(path, "zorb", "star", 2, tmp_path)
    start = formats.load(tmp_path / "zorb.safetensors").vectors
    assert {encoder: tuple(vectors.shape) for encoder, vectors in start.items()} == {"clip_l": (2, 768), "clip_g": (2, 1280)}
    config = TrainingConfig("zorb", str(pictures), steps=4, batch_size=2, width=64, height=64, device="cpu", buckets=True, flip=True)
    checked = preflight(config, 2, path)
    assert checked.ready
    events: list[Event] = []
    trained = train(config, sdxl, tmp_path, listener=events.append)
    read = formats.load(tmp_path / "zorb.safetensors")
    assert (read.family, read.widths, read.provenance.step) == ("SDXL", WIDTHS, 4)
    for encoder, size in zip(WIDTHS, sdxl.words):
        vectors = read.vectors[encoder]
        assert not torch.equal(vectors, start[encoder]), f"{encoder} did not learn"
        torch.testing.assert_close(vectors.norm(dim=1), torch.full((2,), size.norm), rtol=0.5, atol=0)
    assert all(math.isfinite(event.loss) for event in events if isinstance(event, StepDone))
    drawn = generate(sdxl, GenerationSettings(prompt="zorb", steps=2, width=64, height=64), {"zorb": trained})
    assert drawn[0].size == (64, 64)


@pytest.mark.parametrize("method", ["pulled", "directional", "classic"])
def test_a_run_that_was_interrupted_goes_on_with_both_halves(sdxl: StableDiffusion, tmp_path: Path, pictures: Path, method: str) -> None:
    create_embedding(sdxl, "zorb", "star", 2, tmp_path)
    config = TrainingConfig("zorb", str(pictures), method=method, steps=2, batch_size=1, width=64, height=64, save_optimizer=True)
    train(config, sdxl, tmp_path)
    events: list[Event] = []
    train(replace(config, steps=3), sdxl, tmp_path, listener=events.append)
    assert not any("begins anew" in getattr(event, "text", "") for event in events)
    assert formats.load(tmp_path / "zorb.safetensors").provenance.step == 3


def test_an_evaluation_tells_the_model_the_sizes_of_each_batch(sdxl: StableDiffusion, tmp_path: Path, pictures: Path) -> None:
    from textual_inversion.training.data.batches import Batch
    from textual_inversion.training.evaluation import Evaluation
    from textual_inversion.training.step import TrainingStep, row_errors

    generator = torch.Generator().manual_seed(0)
    table = sdxl.conditioner.table_of({"zorb": words()})
    prompts = sdxl.conditioner.tokenize(["zorb"], table)
    x, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    sizes = [torch.tensor([[64.0, 64, 0, 0, 64, 64]]), torch.tensor([[2000.0, 1000, 300, 0, 64, 64]])]
    batches = [Batch(x, noise, torch.tensor([500]), prompts, sizes=each) for each in sizes]
    step = TrainingStep(sdxl, table.vectors, TrainingConfig("zorb", str(pictures)))
    with torch.no_grad():
        errors = torch.cat([row_errors(sdxl, batch, step.vectors, 1) for batch in batches])
    assert errors[0] != errors[1]
    measured = Evaluation(step, 0, batches, GraphCache("cpu")).measure()
    assert measured == pytest.approx(float(errors.log().mean().exp()), rel=1e-6)


def test_steps_are_counted_for_each_half() -> None:
    """Columns that have stayed begin with no steps, those that have learned go on from theirs."""
    vectors = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    sizes = [WordSize(4, 0.4, "clip_l"), WordSize(4, 0.4, "clip_g")]
    alone = optimizer_of(vectors, TrainingConfig("x", "y", train_encoders="clip_g"), sizes)
    for _ in range(3):
        alone.step(torch.ones(1, 8))
    state = alone.state_dict()
    assert float(state["steps"]) == 3
    both = optimizer_of(vectors, TrainingConfig("x", "y"), sizes)
    both.load_state_dict(state)
    assert [float(part.steps) for part in both.parts] == [0, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize("learns", WIDTHS)
def test_one_half_can_learn_alone(sdxl: StableDiffusion, tmp_path: Path, pictures: Path, learns: str) -> None:
    create_embedding(sdxl, "zorb", "star", 2, tmp_path)
    config = TrainingConfig("zorb", str(pictures), steps=2, batch_size=1, width=64, height=64, norm_factor=2, train_encoders=learns)
    start = formats.load(tmp_path / "zorb.safetensors").vectors
    learned = train(config, sdxl, tmp_path).vectors
    assert {encoder for encoder in WIDTHS if not torch.equal(learned[encoder], start[encoder])} == {learns}


def test_words_are_searched_for_both_encoders(sdxl: StableDiffusion, tmp_path: Path, pictures: Path) -> None:
    create_embedding(sdxl, "zorb", "auto", 1, tmp_path)
    events: list[Event] = []
    train(TrainingConfig("zorb", str(pictures), steps=60, batch_size=1, width=64, height=64), sdxl, tmp_path, listener=events.append)
    text = formats.load(tmp_path / "zorb.safetensors").provenance.initializer_text
    assert text
    assert text != "auto"


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        ({"clip_l": torch.ones(1, 768)}, "made for SD1"),
        ({"clip_g": torch.ones(1, 1280)}, "made for SDXL"),
        ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(1, 1280)}, "2 for clip_l and 1 for clip_g"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(sdxl: StableDiffusion, vectors: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(EmbeddingError, match=said):
        sdxl.conditioner.table_of({"x": Embedding("x", vectors)})


def test_an_empty_negative_prompt_is_zeros_as_in_a1111_and_diffusers(sdxl: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = StableDiffusion.predict

    def predict(self: StableDiffusion, noisy: Any, timesteps: Any, prompts: Any, sizes: Any) -> torch.Tensor:
        seen.append((prompts, sizes))
        return original(self, noisy, timesteps, prompts, sizes)

    monkeypatch.setattr(StableDiffusion, "predict", predict)
    for negative in ("", "bad"):
        generate(sdxl, GenerationSettings(prompt="cat", negative_prompt=negative, steps=1, width=64, height=96), {})
        prompts, sizes = seen.pop()
        assert bool(prompts.context[0].any()) == bool(prompts.pooled[0].any()) == bool(negative)
        assert prompts.context[1].any()
        assert sizes.tolist() == [[96, 64, 0, 0, 96, 64]] * 2


def test_the_refiner_is_named(path: Path, tmp_path: Path) -> None:
    tensors = {key: value for key, value in load_file(path).items() if not key.startswith("conditioner.")}
    refiner = tmp_path / "refiner.safetensors"
    save_file({**tensors, "conditioner.embedders.0.model.ln_final.weight": torch.zeros(1)}, refiner)
    with pytest.raises(UnsupportedCheckpointError, match="refiner"):
        check_family(CheckpointFile.open(refiner))


SMALLER = {
    # depths of the transformers as in SSD-1B (no middle attention), and as in KOALA (no middle at all, one block a level)
    "no attention in the middle": UNetConfig(
        model_channels=64,
        channel_mult=(1, 2, 4),
        num_res_blocks=(2, 2, 2),
        transformer_depth=(0, 1, 2),
        middle_depth=-1,
        context_dim=64,
        linear_projection=True,
        depths_in=(0, 0, 1, 1, 2, 2),
        depths_out=(2, 1, 1, 2, 1, 1, 0, 0, 0),
    ),
    "no middle": UNetConfig(
        model_channels=64,
        channel_mult=(1, 2),
        num_res_blocks=(1, 1),
        transformer_depth=(0, 2),
        middle_depth=-2,
        context_dim=64,
        linear_projection=True,
    ),
}


@pytest.mark.parametrize("name", SMALLER)
def test_unets_with_fewer_blocks_are_read_off_their_shapes(name: str) -> None:
    config = SMALLER[name]
    assert UNetConfig.from_shapes(shapes_of(config)) == config
    unet = UNet(config)
    unet.load_state_dict(random_state(config))
    assert unet(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 77, 64)).shape == (1, 4, 8, 8)


def test_the_sizes_of_both_full_encoders_are_read_off_their_shapes() -> None:
    first = CLIPConfig(fixed_layer=11, final_norm=False)
    second = CLIPConfig(width=1280, layers=32, quick_gelu=False, fixed_layer=31, final_norm=False, projection=1280)
    assert CLIPConfig.from_shapes(shapes_of(first), "SDXL", "clip_l") == first
    assert CLIPConfig.from_shapes(shapes_of(second), "SDXL", "clip_g") == second
