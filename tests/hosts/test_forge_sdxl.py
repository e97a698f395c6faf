"""SDXL in a real Forge and a real reForge: words for both text encoders are created, trained and drawn.

Both know a model by its shapes, and take none of the tiny checkpoints. So a checkpoint of random weights stands in: SDXL's text
encoders, and a UNet with the blocks of a smaller SDXL, 320 channels each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hosts.a1111_browser import create, picture
from tests.hosts.conftest import FORGE, REFORGE, Program, WebUI, running
from tests.hosts.forge_rows import SMALL, choose, said, train
from tests.hosts.test_a1111_prompts import FIELDS
from tests.support.checkpoints import TEXT, XL_UNET, open_clip, random_state, write_checkpoint
from textual_inversion import formats
from textual_inversion.diffusion.clip import CLIPConfig
from textual_inversion.diffusion.unet import UNetConfig
from textual_inversion.diffusion.vae import VAEConfig
from textual_inversion.embedding import Embedding

pytestmark = pytest.mark.hosts

WIDTHS = {"clip_l": 768, "clip_g": 1280}
PROGRAMS = {"forge": FORGE, "reforge": REFORGE}
HIRES: dict[str, dict[str, Any]] = {"forge": {"hr_additional_modules": ["Use same choices"]}, "reforge": {}}
UNET = UNetConfig(
    channel_mult=(1, 1, 1),
    num_res_blocks=(1, 1, 1),
    transformer_depth=(0, 2, 5),
    middle_depth=5,
    context_dim=sum(WIDTHS.values()),
    linear_projection=True,
    label_channels=XL_UNET.label_channels,
)
_LAYERS = 2  # of each text encoder that have weights; those behind them are zeros and pass on what they get


def _text(config: CLIPConfig, seed: int) -> dict[str, torch.Tensor]:
    state = random_state(config, seed, torch.float16)
    return {key: value.zero_() if ".layers." in key and int(key.split(".")[3]) >= _LAYERS else value for key, value in state.items()}


def write_short_sdxl(path: Path) -> Path:
    """A checkpoint (2 GB) that both take for SDXL."""
    first = {"conditioner.embedders.0.transformer." + key: value for key, value in _text(CLIPConfig(), 3).items()}
    second = _text(CLIPConfig(width=1280, layers=32, quick_gelu=False, projection=1280), 4)
    extra = first | open_clip(second, "conditioner.embedders.1.model.")
    return write_checkpoint(path, unet=UNET, vae=VAEConfig(), drop=[TEXT], extra=extra)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    for program in PROGRAMS.values():
        program.home()
    path = write_short_sdxl(tmp_path_factory.mktemp("sdxl") / "short.safetensors")
    yield path
    path.unlink()


def fill(data: Path, sd1: Path) -> None:
    """An embedding for SDXL, one for its first text encoder alone, and a checkpoint of SD1."""
    (data / "embeddings").mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    vectors = {encoder: torch.randn(2, width, generator=generator) / 5 for encoder, width in WIDTHS.items()}
    formats.save(Embedding("both", vectors), data / "embeddings" / "both.safetensors")
    formats.save(Embedding("one", {"clip_l": vectors["clip_l"]}), data / "embeddings" / "one.safetensors")
    checkpoints = data / "models" / "Stable-diffusion"
    checkpoints.mkdir(parents=True)
    (checkpoints / "sd1.safetensors").symlink_to(sd1)


def drawn(webui: WebUI, host: str, **changes: Any) -> dict[str, Any]:
    """What the host made of a generation with hires fix."""
    body = {"prompt": "p", "negative_prompt": "n", "seed": 1, "sampler_name": "Euler", "cfg_scale": 4, **SMALL}
    hires = {
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 1,
        "hr_cfg": 4,
        **HIRES[host],
    }
    answer = webui.post("/sdapi/v1/txt2img", **{**body, **hires, "hr_prompt": "q", "hr_negative_prompt": "m", **changes})
    assert "images" in answer, answer
    return dict(webui.get("/test/last"))


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("host", PROGRAMS)
def test_words_of_both_encoders(host: str, checkpoint: Path, short_checkpoint: Path, tmp_path: Path) -> None:
    program: Program = PROGRAMS[host]
    fill(tmp_path, short_checkpoint)
    with running(program, tmp_path, checkpoint) as webui:
        assert picture(webui, "a red circle", **SMALL)[0] != picture(webui, "a both circle", **SMALL)[0], "the vectors are used"
        names = webui.get("/test/inside")["tables"]
        if host == "forge":  # a table for each text encoder
            assert {"text_processing_engine_l", "text_processing_engine_g"} <= set(names)
        assert all("both" in table for table in names.values()), names

        typed, plain = (drawn(webui, host, **dict.fromkeys(FIELDS, text)) for text in ("a <both:1.2>", "a (both:1.2)"))
        assert typed["conditionings"] == plain["conditionings"]
        assert set(typed["conditionings"]) == {"c", "uc", "hr_c", "hr_uc"}

        create(webui, "zorb", num_vectors=2)
        assert train(webui, "zorb")["phase"] == "finished", said(webui)[-2000:]
        trained = formats.load(tmp_path / "embeddings" / "zorb.safetensors")
        assert (trained.family, trained.widths, trained.provenance.step) == ("SDXL", WIDTHS, 2)
        assert "zorb" in picture(webui, "a <zorb:1.1>", **SMALL)[1].partition("TI hashes: ")[2]

        choose(webui, "sd1.safetensors")
        picture(webui, "a one circle", **SMALL)
        known = webui.get("/test/inside")["tables"]
        assert all("one" in table for place, table in known.items() if place != "cards"), known
        choose(webui, "short.safetensors")
        again = picture(webui, "a <both:1.2> circle", **SMALL)[1]
        assert "both" in again.partition("TI hashes: ")[2], again
