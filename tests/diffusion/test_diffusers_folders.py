"""Folders in diffusers' layout beside diffusers itself: the same outputs, the same noise schedule, the same prediction type."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.checkpoint_kinds import UNET_CONFIG, VAE_CONFIG
from tests.support.checkpoints import random_state
from tests.support.diffusers_folders import save_folder
from tests.support.references import apart, diffusers_unet, diffusers_vae, transformers_clip
from textual_inversion import formats
from textual_inversion.diffusion.checkpoint import CheckpointFile, checkpoint_facts, token_tables
from textual_inversion.diffusion.clip import CLIPConfig, TokenBatch
from textual_inversion.diffusion.model import load_checkpoint
from textual_inversion.errors import CheckpointError, UnsupportedCheckpointError
from textual_inversion.training.embedding_file import create_embedding

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

CLIP = CLIPConfig(width=64, layers=2)
OPEN_CLIP = CLIPConfig(width=64, layers=3, quick_gelu=False)
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TOLERANCE = 1e-4


def write(path: Path, *, sd2: bool = False, **scheduler: Any) -> tuple[Path, dict[str, Any]]:
    """A folder, and the objects of diffusers and transformers that it was written from."""
    unet = replace(UNET_CONFIG, model_channels=64, linear_projection=True) if sd2 else UNET_CONFIG
    clip = OPEN_CLIP if sd2 else CLIP
    parts = {
        "unet": diffusers_unet(unet, random_state(unet, 1)),
        "vae": diffusers_vae(VAE_CONFIG, random_state(VAE_CONFIG, 2)),
        "text_encoder": transformers_clip(clip, random_state(clip, 3)),
        "scheduler": diffusers.DDIMScheduler(**(SCALED | scheduler)),
    }
    return save_folder(path, parts), parts


@torch.no_grad()
@pytest.mark.parametrize("sd2", [False, True], ids=["SD1", "SD2"])
def test_it_computes_what_diffusers_computes(tmp_path: Path, sd2: bool) -> None:
    path, parts = write(tmp_path / "model.v1", sd2=sd2)
    model = load_checkpoint(path, device="cpu", precision="fp32", prediction_type="epsilon")
    assert (model.family, model.name, model.hash) == ("SD2" if sd2 else "SD1", "model.v1", None)
    generator = torch.Generator().manual_seed(0)
    latents, pixels = torch.randn(1, 4, 8, 8, generator=generator), torch.rand(1, 3, 16, 16, generator=generator)
    ids = torch.randint(0, 49000, (1, 77), generator=generator)
    theirs = parts["text_encoder"](input_ids=ids).last_hidden_state
    tokens = TokenBatch(ids, torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool))
    assert apart(model.text_encoder(tokens, torch.zeros(1, 64)).hidden, theirs) < TOLERANCE
    assert apart(model.unet(latents, torch.tensor([500]), theirs), parts["unet"](latents, 500, theirs).sample) < TOLERANCE
    assert apart(model.vae.encode_moments(pixels)[0], parts["vae"].encode(pixels).latent_dist.mean) < TOLERANCE
    assert apart(model.vae.decode(latents * 0.18215), parts["vae"].decode(latents).sample) < TOLERANCE


@pytest.mark.parametrize("scheduler", [
    {}, {"beta_schedule": "linear"}, {"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": [0.001] * 999 + [0.01]},
    {"prediction_type": "v_prediction"}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
], ids=str)  # fmt: skip
def test_the_scheduler_settings_count(tmp_path: Path, scheduler: dict[str, Any]) -> None:
    path, parts = write(tmp_path / "model", **scheduler)
    model = load_checkpoint(path, device="cpu", precision="fp32")
    theirs = parts["scheduler"].alphas_cumprod
    assert torch.allclose(model.schedule.alphas_cumprod, theirs.clamp(min=4.9e-8), rtol=1e-3, atol=1e-7)
    assert model.prediction.name == scheduler.get("prediction_type", "epsilon")
    assert [note for note in model.notes if "scheduler_config.json" in note] or model.prediction.name == "epsilon"


def test_an_embedding_of_a_folder_names_it_without_a_hash(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model.v1")
    embedding = formats.load(create_embedding(path, "zorb", "star", 2, tmp_path))
    assert (embedding.provenance.checkpoint_name, embedding.provenance.checkpoint_hash) == ("model.v1", None)


def test_facts_follow_a_change_inside_the_folder(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model")
    assert checkpoint_facts(path).widths == {"clip_l": 64}
    (path / "unet" / "config.json").write_text(json.dumps({"act_fn": "mish"}))
    with pytest.raises(UnsupportedCheckpointError, match="act_fn"):
        checkpoint_facts(path)


def test_the_second_text_encoder_has_open_clips_names(tmp_path: Path) -> None:
    """SDXL's parts are found under the names of its LDM layout."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    path, _ = write(tmp_path / "model")
    config = transformers.CLIPTextConfig(
        vocab_size=100, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1, hidden_act="gelu",
        projection_dim=64, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    second = transformers.CLIPTextModelWithProjection(config)
    second.save_pretrained(path / "text_encoder_2")
    for name, change in (
        ("vae/config.json", {"scaling_factor": 0.13025}),
        ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}),
    ):
        (path / name).write_text(json.dumps(json.loads((path / name).read_text()) | change))
    assert {name: table.shape[0] for name, table in token_tables(path).items()} == {"clip_l": 49408, "clip_g": 100}
    file, prefix = CheckpointFile.open(path), "conditioner.embedders.1.model."
    with file.reader() as reader:
        stored = {key: reader.tensor(key) for key in file.shapes if key.startswith(prefix)}
    converted = convert_open_clip_checkpoint(second, stored, prefix=prefix)
    for key, value in second.state_dict().items():
        assert torch.equal(converted[key], value), key


@pytest.mark.parametrize("form", ["diffusers", "ldm.pt", "ldm.ckpt"])
def test_a_vae_comes_in_any_container(tmp_path: Path, form: str) -> None:
    path, _ = write(tmp_path / "model")
    state = random_state(VAE_CONFIG, 7)
    if form == "diffusers":
        target = tmp_path / "diffusion_pytorch_model.safetensors"
        save_file({key: value.clone() for key, value in diffusers_vae(VAE_CONFIG, state).state_dict().items()}, target)
    else:
        target = tmp_path / form
        torch.save({"state_dict": state | {"loss.logvar": torch.zeros(())}} if form.endswith("ckpt") else state, target)
    model = load_checkpoint(path, vae=target, device="cpu", precision="fp32")
    assert all(torch.equal(value, state[key].reshape(value.shape)) for key, value in model.vae.state_dict().items())


@pytest.mark.parametrize(("name", "text"), [
    ("model_index.json", "{"), ("model_index.json", "[]"), ("unet/config.json", "7"), ("scheduler/scheduler_config.json", "{'a': 1}"),
    ("scheduler/scheduler_config.json", '{"beta_start": "x"}'), ("scheduler/scheduler_config.json", '{"trained_betas": [1, 2]}'),
    ("unet/config.json", '{"block_out_channels": "x"}'), ("unet/config.json", '{"block_out_channels": ["x"]}'),
    ("text_encoder/config.json", '{"hidden_size": "x"}'), ("vae/config.json", '{"scaling_factor": "x"}'),
    ("unet/config.json", '{"act_fn": ["silu"]}'), ("unet/config.json", '{"down_block_types": [["x"]]}'),
])  # fmt: skip
def test_damaged_settings_are_told(tmp_path: Path, name: str, text: str) -> None:
    path, _ = write(tmp_path / "model")
    (path / name).write_text(text)
    with pytest.raises(CheckpointError, match=r"^model.*\.$"):
        checkpoint_facts(path)


@pytest.mark.parametrize("listed", ["../x.safetensors", "/x.safetensors", "a\\b.safetensors", "", 7])
def test_an_index_of_shards_names_no_files_elsewhere(tmp_path: Path, listed: object) -> None:
    path, _ = write(tmp_path / "model")
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = {"weight_map": {"conv_in.weight": listed}}
    (path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lists no files of its own folder"):
        CheckpointFile.open(path)
