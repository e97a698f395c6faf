"""The package's text encoder and UNet beside those of a real A1111, on the same checkpoint, prompts, latents and vectors, in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.hosts.a1111_browser import TINY, running_a1111
from tests.hosts.conftest import WebUI
from textual_inversion.diffusion.conditioning import VectorTable
from textual_inversion.diffusion.model import load_checkpoint
from textual_inversion.formats import load

pytestmark = pytest.mark.hosts

MOST = 1e-3  # of the largest value; emphasis divides by a mean that may be near zero, everything else agrees to 1e-6
PROMPTS = (
    "a red circle on a blue background",
    "a (red:1.3) circle, [blue] background, ((striped)) BREAK a (green:0.7) square",
    "a picture of learned, pink background",
    "(learned:1.4) and (my-word:0.6) " + "with many words " * 25,
    "",
)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def write_words(folder: Path) -> list[Path]:
    generator = torch.Generator().manual_seed(3)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "learned.safetensors", folder / "my-word.safetensors"]
    for count, path in zip((2, 5), paths):
        save_file({"emb_params": torch.randn(count, 64, generator=generator) * 0.1}, path)
    return paths


def test_conditioning_and_noise_prediction(tmp_path: Path) -> None:
    words = {path.stem: load(path) for path in write_words(tmp_path / "embeddings")}
    with running_a1111(tmp_path) as webui:
        theirs = {
            name: torch.tensor(value)
            for name, value in webui.get("/test/model", prompts="\n".join(PROMPTS)).items()
            if isinstance(value, list)
        }
        check_clip_skip(webui)
    model = load_checkpoint(TINY / "tiny.safetensors", device="cpu", precision="fp32")
    table = VectorTable.of(words, model.widths, "cpu")
    with torch.no_grad():
        chunks = theirs["conditioning"].shape[1] // 77
        # one by one, as the host does
        conditioning = torch.cat(
            [model.conditioner.encode(model.conditioner.tokenize([p], table, chunks), table.vectors).context for p in PROMPTS]
        )
        noise = model.unet(theirs["latents"], theirs["timesteps"], theirs["conditioning"])
    assert conditioning.shape == theirs["conditioning"].shape
    found = relative(conditioning, theirs["conditioning"]), relative(noise, theirs["noise"])
    print(f"conditioning {found[0]:.1e}, noise prediction {found[1]:.1e}")
    assert max(found) < MOST


def check_clip_skip(webui: WebUI) -> None:
    """Of the host, with two layers left out at the end."""
    webui.post("/sdapi/v1/options", CLIP_stop_at_last_layers=2)
    theirs = torch.tensor(webui.get("/test/model", prompts=PROMPTS[0])["conditioning"])
    model = load_checkpoint(TINY / "tiny.safetensors", device="cpu", precision="fp32")
    table = VectorTable.of({}, model.widths, "cpu")
    with torch.no_grad():
        ours = model.conditioner.encode(model.conditioner.tokenize([PROMPTS[0]], table), table.vectors, clip_skip=2).context
    assert relative(ours, theirs) < MOST
