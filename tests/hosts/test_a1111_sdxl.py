"""An SDXL embedding made here, in a real A1111 with the tiny SDXL checkpoint: the same conditioning, and a run in its tab's API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.hosts.a1111_browser import running_a1111
from tests.hosts.test_a1111_numbers import MOST, relative, train_there
from textual_inversion import formats
from textual_inversion.diffusion.conditioning import picture_sizes, size_label
from textual_inversion.diffusion.model import TINY_CHECKPOINTS, load_checkpoint
from textual_inversion.embedding import Embedding

pytestmark = pytest.mark.hosts

PROMPTS = (
    "a red circle on a blue background",
    "a (red:1.3) circle, [blue] background",
    "a picture of learned, pink background",
    "(learned:1.4) square",
    "a photo " + "with many words " * 25,
)


def written(folder: Path) -> Embedding:
    generator = torch.Generator().manual_seed(3)
    folder.mkdir(parents=True, exist_ok=True)
    vectors = {encoder: torch.randn(3, 64, generator=generator) * 0.1 for encoder in ("clip_l", "clip_g")}
    embedding = Embedding("learned", vectors)
    formats.save(embedding, folder / "learned.safetensors")
    return embedding


def test_conditioning_prediction_and_training(tmp_path: Path) -> None:
    embedding = written(tmp_path / "embeddings")
    (tmp_path / "config.json").write_text(json.dumps({"live_previews_enable": False}), encoding="utf-8")
    with running_a1111(tmp_path, checkpoint="tiny-sdxl") as webui:
        assert webui.get("/test/inside")["loaded"]["learned"][:2] == [3, 128]
        theirs = {name: torch.tensor(value) for name, value in webui.get("/test/sdxl", prompts="\n".join(PROMPTS[:4])).items()}
        longest = torch.tensor(webui.get("/test/sdxl", prompts=PROMPTS[4])["conditioning"])
        trained = train_there(webui, tmp_path / "embeddings" / "zorb.safetensors")
    assert (trained.family, set(trained.vectors)) == ("SDXL", {"clip_l", "clip_g"})
    model = load_checkpoint(TINY_CHECKPOINTS["sdxl"], device="cpu", precision="fp32")
    table = model.conditioner.table_of({"learned": embedding})
    with torch.no_grad():
        ours = [model.conditioner.encode(model.conditioner.tokenize([prompt], table), table.vectors) for prompt in PROMPTS]
        sizes = picture_sizes([(128, 128)] * 4, "cpu")
        label = size_label(torch.cat([each.pooled for each in ours[:4] if each.pooled is not None]), sizes)
        noise = model.unet(theirs["latents"], theirs["timesteps"], theirs["conditioning"], theirs["vector"])
    found = {
        "conditioning": relative(torch.cat([each.context for each in ours[:4]]), theirs["conditioning"]),
        "several chunks": relative(ours[4].context, longest),
        "pooled vector and sizes": relative(label, theirs["vector"]),
        "noise prediction": relative(noise, theirs["noise"]),
    }
    print(found)
    assert max(found.values()) < MOST, found
