"""The samplers against k-diffusion's and A1111's own.

The numbers are the results of their code for the denoiser and the noise below, in double precision, with their defaults: k-diffusion at
4601bf0 (`sampling.py`, `external.py`) and A1111 1.10 at 82a973c of lshqqytiger/stable-diffusion-webui-amdgpu
(`sd_samplers_timesteps_impl.py`, `sd_samplers_lcm.py`, `uni_pc.py`). The schedule of each name and the noise levels left out are those in
`sd_samplers_kdiffusion.py`. k-diffusion's Brownian tree was replaced by a motion with the same increments as here.
"""

from __future__ import annotations

import math
from itertools import count

import pytest
import torch

from textual_inversion.diffusion.noise import NoiseSchedule
from textual_inversion.diffusion.samplers import SAMPLERS

SCHEDULE = NoiseSchedule.scaled_linear()
MODES = ((0.4, -1.0, 0.3), (0.6, 0.8, 0.2))  # share, mean, spread
NINE_STEPS = {
    "DPM++ 2M Karras": (0.8547579, 1.0076618, -1.1042579, -1.1676582, 0.9862968, 0.8930739),
    "DPM++ SDE Karras": (0.7011818, 0.6933884, 0.7445059, 0.7086345, 0.7062459, 0.6854033),
    "DPM++ 2M SDE": (0.8331301, 0.7735377, 0.6727006, 0.8272045, 0.8284852, 0.7252574),
    "DPM++ 2M SDE Karras": (0.7933036, 0.8304644, 0.8748341, 0.8473873, 0.7846988, 0.8571903),
    "DPM++ 2S a": (0.7532577, 0.6057670, 0.6682407, 0.7182319, 0.7313574, 0.6004195),
    "DPM++ 3M SDE": (0.7615270, 0.7935989, 0.7757525, 0.7435573, 0.7698755, 0.7925285),
    "DPM++ 3M SDE Karras": (0.8913039, 0.7831420, 0.7807326, 0.8406435, 0.9413186, 0.7362531),
    "Euler a": (0.6454053, 0.6113971, 0.6193490, 0.6731091, 0.6110482, 0.6097798),
    "Euler": (0.7829290, 0.8858906, -0.9506724, -1.0010518, 0.8723538, 0.8103067),
    "Heun": (0.8170550, 1.0389300, -1.0325557, -1.1054990, 1.0085418, 0.8733923),
    "DPM2": (0.8172210, 0.9760874, -1.0386888, -1.1011270, 0.9541942, 0.8573746),
    "DPM2 a": (0.7641358, 0.7578650, 0.7871998, 0.7142628, 0.7868038, 0.7510639),
    "LCM": (0.6638437, 0.7512034, 0.6280456, 0.6192972, 0.6427933, 0.6777323),
}
NINE_STEPS["DPM++ 2M"], NINE_STEPS["DPM++ SDE"] = NINE_STEPS["DPM++ 2M Karras"], NINE_STEPS["DPM++ SDE Karras"]
#: (name, steps) -> x at the noise of timestep 1 (DDIM) or 0 (UniPC), where A1111 stops, times sqrt(1 + sigma**2).
UNFINISHED = {
    ("DDIM", 8): (0.7805779, 0.8958500, -0.9522753, -1.0050660, 0.8806926, 0.8112196),
    ("DDIM", 9): (0.7841095, 0.9015657, -0.9558391, -1.0092742, 0.8859848, 0.8150023),
    ("DDIM", 12): (0.7889459, 0.9139986, -0.9691731, -1.0240364, 0.8972361, 0.8214408),
    ("DDIM", 20): (0.7941645, 0.9324383, -0.9857552, -1.0434801, 0.9137518, 0.8297734),
    ("UniPC", 3): (0.6315839, 0.8209607, -0.6756789, -0.7777209, 0.8030769, 0.6947687),
    ("UniPC", 9): (0.8104230, 0.9084946, -1.0337744, -1.0759586, 0.8949151, 0.8351988),
    ("UniPC", 27): (0.8036482, 0.9446165, -1.0093331, -1.0678189, 0.9253803, 0.8395679),
}


def noise_of(number: int) -> torch.Tensor:
    """The noise that was drawn as the `number`th, from a formula that no version of a generator changes; 0 is the first x."""
    return (1.4 * torch.sin(2.3 * number + 1.7 * torch.arange(6, dtype=torch.float64) + 0.4)).reshape(1, 1, 2, 3)


def expected_picture(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The mean of the pictures behind x, where each number of a picture comes from a mixture of two Gaussians."""
    logs, means = [], []
    for share, mean, spread in MODES:
        variance = spread**2 + sigma**2
        logs.append(math.log(share) - math.log(variance) / 2 - (x - mean) ** 2 / (2 * variance))
        means.append(mean + spread**2 / variance * (x - mean))
    return (torch.softmax(torch.stack(logs), 0) * torch.stack(means)).sum(0)


def drawn(name: str, sigmas: list[float]) -> torch.Tensor:
    numbers = count(1)
    sample, _ = SAMPLERS[name]
    return sample(expected_picture, noise_of(0) * sigmas[0], sigmas, lambda: noise_of(next(numbers)), lambda done: None).flatten()


@pytest.mark.parametrize("name", NINE_STEPS)
def test_pictures_are_those_of_k_diffusion(name: str) -> None:
    _, sigmas_for = SAMPLERS[name]
    assert drawn(name, sigmas_for(SCHEDULE, 9)).tolist() == pytest.approx(NINE_STEPS[name], abs=5e-6)


@pytest.mark.parametrize(("name", "steps"), UNFINISHED)
def test_ddim_and_unipc_come_to_where_a1111_stops(name: str, steps: int) -> None:
    _, sigmas_for = SAMPLERS[name]
    last = float(SCHEDULE.sigmas[1 if name == "DDIM" else 0])
    reached = drawn(name, [*sigmas_for(SCHEDULE, steps)[:-1], last])
    assert reached.tolist() == pytest.approx(UNFINISHED[name, steps], abs=1e-6)


def test_every_sampler_has_numbers() -> None:
    assert {*NINE_STEPS, *(name for name, _ in UNFINISHED)} == set(SAMPLERS)
