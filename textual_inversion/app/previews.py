"""A txt2img page's settings as settings of previews. Knows nothing of gradio."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from textual_inversion.settings.generation import SAMPLERS

#: What a WebUI's txt2img page hands over, in this order, as fields of `TrainingConfig`.
DRAWING_SETTINGS = (
    "preview_prompt",
    "preview_negative_prompt",
    "preview_steps",
    "preview_sampler",
    "preview_cfg_scale",
    "preview_seed",
    "preview_width",
    "preview_height",
)
_NETWORKS = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")  # previews are drawn without them


def preview_settings(drawn_with: Sequence[Any], fixed_seed: int) -> dict[str, Any]:
    """Values of `DRAWING_SETTINGS` as previews can be drawn with them: within their ranges, by a sampler that is here.

    Args:
        drawn_with: the values of the txt2img page.
        fixed_seed: instead of a random seed, so that previews can be compared.
    """
    given = dict(zip(DRAWING_SETTINGS, drawn_with))
    seed = int(given["preview_seed"] if given["preview_seed"] not in (None, "") else -1)
    return {
        "preview_prompt": _NETWORKS.sub("", str(given["preview_prompt"] or "")).strip(),
        "preview_negative_prompt": _NETWORKS.sub("", str(given["preview_negative_prompt"] or "")).strip(),
        "preview_steps": int(_within(given["preview_steps"], 1, 150)),
        "preview_sampler": _sampler(str(given["preview_sampler"] or "")),
        "preview_cfg_scale": float(_within(given["preview_cfg_scale"], 1, 30)),
        "preview_seed": seed if 0 <= seed < 2**32 else fixed_seed,
        "preview_width": int(_within(given["preview_width"], 64, 2048)) // 8 * 8,
        "preview_height": int(_within(given["preview_height"], 64, 2048)) // 8 * 8,
    }


def _within(value: Any, low: float, high: float) -> float:
    return min(high, max(low, float(value or low)))


def _sampler(name: str) -> str:
    known = {sampler.lower(): sampler for sampler in SAMPLERS}
    return known.get(name.lower(), SAMPLERS[-1])
