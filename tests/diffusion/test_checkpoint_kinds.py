"""Every kind of checkpoint in docs/checkpoints.md: computed like the plain file, or refused with its reason in one sentence."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.checkpoint_kinds import KINDS, PLAIN
from textual_inversion.diffusion.checkpoint import TEXT, UNET, VAE, CheckpointFile, TensorReader, check_family, token_tables
from textual_inversion.diffusion.clip import CLIPConfig, CLIPTextEncoder, TokenBatch
from textual_inversion.diffusion.unet import UNet, UNetConfig
from textual_inversion.diffusion.vae import VAE as AutoEncoder
from textual_inversion.diffusion.vae import VAEConfig
from textual_inversion.errors import CheckpointError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
COMPUTED = [name for name, kind in KINDS.items() if not kind.refused]
REFUSED = [name for name, kind in KINDS.items() if kind.refused]
Outputs = dict[str, torch.Tensor]


@torch.no_grad()
def outputs(path: Path) -> Outputs:
    """What UNet, VAE and text encoder compute from fixed inputs, with the weights of a checkpoint."""
    file = CheckpointFile.open(path)
    family = check_family(file)
    with file.reader() as reader:
        unet = _filled(reader, UNET, UNet(UNetConfig.from_shapes(file.under(UNET))))
        vae = _filled(reader, VAE, AutoEncoder(VAEConfig.from_shapes(file.under(VAE))))
        text = _filled(
            reader, TEXT, CLIPTextEncoder(CLIPConfig.from_shapes(file.under(TEXT), family, "clip_h" if family == "SD2" else "clip_l"))
        )
        schedule = reader.tensor("alphas_cumprod").float()
    generator = torch.Generator().manual_seed(0)
    latents, pixels = torch.randn(1, 4, 8, 8, generator=generator), torch.rand(1, 3, 16, 16, generator=generator)
    ids = torch.randint(0, 90, (1, 77), generator=generator)
    tokens = TokenBatch(ids, torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool))
    context = text(tokens, torch.zeros(1, text.config.width)).hidden
    return {
        "text": context,
        "unet": unet(torch.randn(1, unet.config.in_channels, 8, 8, generator=generator), torch.tensor([500]), context),
        "encoded": vae.encode_moments(pixels)[0],
        "decoded": vae.decode(latents),
        "schedule": schedule,
    }


def _filled(reader: TensorReader, prefix: str, module: torch.nn.Module) -> torch.nn.Module:
    reader.fill(module.to("meta"), prefix, device="cpu", dtype=torch.float32)
    return module


def plain_outputs(name: str) -> Outputs:
    """What the plain file computes that a kind must equal."""
    like = KINDS[name].like()
    return _outputs_of_plain() if like is PLAIN else _outputs_of(like)


@cache
def _outputs_of_plain() -> Outputs:
    return _outputs_of(PLAIN)


def _outputs_of(state: Mapping[str, torch.Tensor]) -> Outputs:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, path)
        return outputs(path)


@pytest.mark.parametrize("name", COMPUTED)
def test_it_computes_like_the_plain_file(name: str, tmp_path: Path) -> None:
    path = KINDS[name].make(tmp_path)
    expected, found = plain_outputs(name), outputs(path)
    for part, values in expected.items():
        assert torch.equal(values, found[part]), part
    assert set(token_tables(path)) == {"clip_l"}
    assert token_tables(path)["clip_l"].shape == (100, 64)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    path = KINDS[name].make(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        outputs(path)
    message = str(caught.value)
    assert KINDS[name].refused in message
    assert caught.value.path is not None
    assert caught.value.path.name in message
    assert message.endswith(".")
    assert "\n" not in message
    assert not Path("must-not-exist").exists()


def test_there_are_enough_kinds() -> None:
    assert len(KINDS) >= 40


def test_the_documentation_lists_them() -> None:
    rows = re.findall(r"^\| (.+?) \| (computed|refused) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(rows) == {name: "refused" if kind.refused else "computed" for name, kind in KINDS.items()}


@pytest.mark.slow
def test_a_file_of_more_than_four_gigabytes(tmp_path: Path) -> None:
    """PyTorch's own zip with numbers of 64 bits; the file is a hole where the file system knows holes."""
    size = 4_400_000_000
    if not hasattr(torch.serialization, "skip_data"):
        pytest.skip("this PyTorch cannot save without the data")
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(size)
    large = torch.from_file(str(tmp_path / "hole"), shared=False, size=size, dtype=torch.uint8)
    with torch.serialization.skip_data():
        torch.save({"state_dict": {"large": large, "last": torch.ones(2, 3)}}, tmp_path / "large.ckpt")
    file = CheckpointFile.open(tmp_path / "large.ckpt")
    assert file.shapes == {"large": (size,), "last": (2, 3)}
    with file.reader() as reader:
        assert torch.equal(reader.tensor("last"), torch.zeros(2, 3))
