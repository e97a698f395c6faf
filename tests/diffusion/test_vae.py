"""The autoencoder against diffusers' on the same random weights, and its sizes read off the shapes."""

from __future__ import annotations

import pytest
import torch

from tests.support.checkpoints import TINY_VAE, random_module, shapes_of
from tests.support.references import apart, diffusers_vae, epsilons
from textual_inversion.diffusion.vae import VAEConfig

CONFIGS = {
    "tiny": TINY_VAE,
    "narrow SD": VAEConfig(32),
    "four levels": VAEConfig(32, (1, 1, 2, 2), 1),
    "16 channels": VAEConfig(32, (1, 2), 1, 16),
}


@torch.no_grad()
def compare(config: VAEConfig, height: int, width: int) -> tuple[float, float, float]:
    """Distance of mean, log variance and decoded picture."""
    ours = random_module(config)
    theirs = diffusers_vae(config, ours.state_dict())
    torch.manual_seed(1)
    pixels = torch.rand(2, 3, height, width) * 2 - 1
    mean, logvar = ours.encode_moments(pixels)
    moments = theirs.encode(pixels).latent_dist
    picture = ours.decode(mean * ours.scale_factor)
    return apart(mean, moments.mean), apart(logvar, moments.logvar), apart(picture, theirs.decode(mean).sample)


@pytest.mark.parametrize("name", CONFIGS)
def test_moments_and_pictures_are_those_of_diffusers(name: str) -> None:
    assert max(compare(CONFIGS[name], 64, 64)) < 1e-4


@pytest.mark.parametrize(("height", "width"), [(64, 96), (40, 8), (72, 56)])
def test_sizes_that_are_multiples_of_8_fit(height: int, width: int) -> None:
    assert max(compare(CONFIGS["narrow SD"], height, width)) < 1e-4


def test_norms_add_the_same_to_the_variance() -> None:
    ours = random_module(CONFIGS["narrow SD"])
    assert epsilons(ours) == epsilons(diffusers_vae(CONFIGS["narrow SD"], ours.state_dict()))


@pytest.mark.slow
def test_a_full_sd15_is_that_of_diffusers() -> None:
    assert max(compare(VAEConfig(), 96, 72)) < 1e-4


@pytest.mark.parametrize("config", [VAEConfig(), *CONFIGS.values()], ids=["SD1.5", *CONFIGS])
def test_sizes_are_read_off_the_shapes(config: VAEConfig) -> None:
    assert VAEConfig.from_shapes(shapes_of(config)) == config


def test_log_variance_is_bounded() -> None:
    vae = random_module(TINY_VAE)
    with torch.no_grad():
        vae.quant_conv.bias[4:6] += torch.tensor([1e4, -1e4])
        _, logvar = vae.encode_moments(torch.rand(1, 3, 32, 32))
    assert logvar[:, 0].eq(20).all()
    assert logvar[:, 1].eq(-30).all()


def test_decoding_takes_scaled_latents() -> None:
    vae = random_module(TINY_VAE)
    latents = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = vae.decoder(vae.post_quant_conv(latents))
        assert apart(vae.decode(latents * vae.scale_factor), expected) < 1e-5


def test_downscale_counts_the_levels() -> None:
    assert [VAEConfig().downscale, TINY_VAE.downscale, CONFIGS["16 channels"].downscale] == [8, 8, 2]
