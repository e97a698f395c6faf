"""The package's text encoder and UNet beside those of a real A1111, on the same checkpoint, prompts, latents and vectors, in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hosts.a1111_browser import API, TINY, running_a1111
from tests.hosts.conftest import WebUI
from textual_inversion.demo.run import PICTURES
from textual_inversion.diffusion.conditioning import VectorTable
from textual_inversion.diffusion.model import TINY_CHECKPOINTS, load_checkpoint
from textual_inversion.embedding import Embedding
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


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_conditioning_and_noise_prediction(family: str, tmp_path: Path) -> None:
    words = {path.stem: load_file(path)["emb_params"] for path in write_words(tmp_path / "embeddings")}
    checkpoint = TINY_CHECKPOINTS[family]
    with running_a1111(tmp_path, checkpoint=checkpoint.stem) as webui:
        theirs = {
            name: torch.tensor(value)
            for name, value in webui.get("/test/model", prompts="\n".join(PROMPTS)).items()
            if isinstance(value, list)
        }
        trained = train_there(webui, tmp_path / "embeddings" / "zorb.safetensors")
        if family == "sd1":  # SD2's encoder has a layer of its own at which it ends
            check_clip_skip(webui)
    model = load_checkpoint(checkpoint, device="cpu", precision="fp32")
    assert list(trained.widths.values()) == list(model.widths.values())
    (encoder,) = model.widths
    table = model.conditioner.table_of({name: Embedding(name, {encoder: vectors}) for name, vectors in words.items()})
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


def train_there(webui: WebUI, path: Path) -> Embedding:
    """An embedding that learned four steps in the host, and was drawn with."""
    assert webui.ask("POST", f"{API}/create", {"name": "zorb", "initializer_text": "shape", "num_vectors": 2})[0] == 200
    settings = {"name": "zorb", "images": str(PICTURES), "steps": 4, "width": 128, "height": 128, "wait": True}
    assert webui.ask("POST", f"{API}/train", settings)[0] == 200
    assert webui.post("/sdapi/v1/txt2img", prompt="a picture of <zorb:1.1>", steps=2, width=128, height=128)["images"]
    trained = load(path)
    assert trained.provenance.step == 4
    return trained


def check_clip_skip(webui: WebUI) -> None:
    """Of the host, with two layers left out at the end."""
    webui.post("/sdapi/v1/options", CLIP_stop_at_last_layers=2)
    theirs = torch.tensor(webui.get("/test/model", prompts=PROMPTS[0])["conditioning"])
    model = load_checkpoint(TINY / "tiny.safetensors", device="cpu", precision="fp32")
    table = VectorTable.of({}, model.widths, "cpu")
    with torch.no_grad():
        ours = model.conditioner.encode(model.conditioner.tokenize([PROMPTS[0]], table), table.vectors, clip_skip=2).context
    assert relative(ours, theirs) < MOST
