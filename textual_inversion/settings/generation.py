"""What to draw: the settings of pictures made from a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textual_inversion.settings.schema import Settings, setting

#: In the order of A1111's list. This module needs no torch; `diffusion.samplers` has the functions.
SAMPLERS = (
    "DPM++ 2M",
    "DPM++ 2M Karras",
    "DPM++ SDE",
    "DPM++ SDE Karras",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Karras",
    "DPM++ 2S a",
    "DPM++ 3M SDE",
    "DPM++ 3M SDE Karras",
    "Euler a",
    "Euler",
    "Heun",
    "DPM2",
    "DPM2 a",
    "DDIM",
    "UniPC",
    "LCM",
)
#: Names as A1111's aliases, its older versions and infotexts have them -> the sampler with the schedule that it has there.
_OTHER_NAMES = {
    "DPM++ 2M": ("k_dpmpp_2m",),
    "DPM++ 2M Karras": ("k_dpmpp_2m_ka",),
    "DPM++ SDE": ("k_dpmpp_sde",),
    "DPM++ SDE Karras": ("k_dpmpp_sde_ka",),
    "DPM++ 2M SDE": ("k_dpmpp_2m_sde", "DPM++ 2M SDE Exponential"),
    "DPM++ 2M SDE Karras": ("k_dpmpp_2m_sde_ka",),
    "DPM++ 2S a": ("k_dpmpp_2s_a", "k_dpmpp_2s_a_ka", "DPM++ 2S a Karras"),
    "DPM++ 3M SDE": ("k_dpmpp_3m_sde", "DPM++ 3M SDE Exponential"),
    "Euler a": ("k_euler_a", "k_euler_ancestral", "Euler ancestral"),
    "Euler": ("k_euler",),
    "Heun": ("k_heun",),
    "DPM2": ("k_dpm_2", "k_dpm_2_ka", "DPM2 Karras"),
    "DPM2 a": ("k_dpm_2_a", "k_dpm_2_a_ka", "DPM2 a Karras"),
    "LCM": ("k_lcm",),
}
#: The same names without spaces, underscores and capitals, and those of the list too -> the sampler.
SAMPLER_ALIASES = {
    other.casefold().replace(" ", "").replace("_", ""): name for name in SAMPLERS for other in (name, *_OTHER_NAMES.get(name, ()))
}
MAX_SEED = 2**32 - 1
#: Declarations that the pictures of `generate` and the previews of a training run share.
SAMPLER: dict[str, Any] = {"choices": SAMPLERS, "aliases": SAMPLER_ALIASES, "metavar": "NAME"}
SAMPLER_STEPS: dict[str, Any] = {"minimum": 1, "maximum": 150, "step": 1}
GUIDANCE: dict[str, Any] = {"minimum": 1, "maximum": 30, "step": 0.5}
SIDE: dict[str, Any] = {"minimum": 64, "maximum": 2048, "multiple": 8}
SEED: dict[str, Any] = {"minimum": 0, "maximum": MAX_SEED}
CLIP_SKIP: dict[str, Any] = {"minimum": 1, "maximum": 12, "step": 1}


@dataclass(frozen=True)
class GenerationSettings(Settings):
    """What to draw. The declaration of each field describes it, and docs/settings.md lists all fields.

    Raises:
        ConfigError: with the name of the first setting that cannot be used.
    """

    prompt: str = setting(
        label="Prompt",
        kind="lines",
        verbatim=True,
        help="what to draw; emphasis, names of embeddings, `<name:weight>`, `[a:b:0.5]` and `AND` have a meaning",
    )
    negative_prompt: str = setting(
        "", label="Negative prompt", kind="lines", verbatim=True, option="negative", help="what to lead away from"
    )
    steps: int = setting(20, **SAMPLER_STEPS, label="Sampling steps", hint="More is finer and slower.", help="sampler steps ({range})")
    sampler: str = setting(
        "DPM++ 2M Karras",
        **SAMPLER,
        label="Sampling method",
        help="A1111's name of the sampler; without a schedule in the name, A1111's automatic one",
    )
    cfg_scale: float = setting(7.0, **GUIDANCE, label="CFG Scale", hint="How close to the prompt.", help="guidance ({range})")
    width: int = setting(512, **SIDE, label="Picture width", help="width in pixels ({range})")
    height: int = setting(512, **SIDE, label="Picture height", help="height in pixels ({range})")
    seed: int = setting(
        0, **SEED, label="Seed, −1 for a new one each time", help="of the first picture ({range}); each further one takes the next"
    )
    count: int = setting(1, minimum=1, maximum=64, step=1, label="Pictures", help="pictures ({range})")
    clip_skip: int = setting(
        1, **CLIP_SKIP, label="Clip skip", help="layers left out at the end of the text encoder, as A1111 counts ({range}, 1 = none)"
    )
