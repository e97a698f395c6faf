"""A txt2img page's settings as settings of previews. Knows nothing of gradio."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from textual_inversion.settings.schema import Setting, setting_of
from textual_inversion.settings.training import TrainingConfig

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
    return {name: _usable(setting_of(TrainingConfig, name), given[name], fixed_seed) for name in DRAWING_SETTINGS}


def _usable(setting: Setting, value: Any, fixed_seed: int) -> Any:
    """`value` as the setting allows it: a number within its range, a sampler that is here, a prompt without networks."""
    if setting.choices:
        known = {choice.lower(): choice for choice in setting.choices}
        return known.get(str(value or "").lower(), setting.choices[-1])
    if setting.type is str:
        return _NETWORKS.sub("", str(value or "")).strip()
    if setting.name == "preview_seed":
        seed = int(value if value not in (None, "") else -1)
        return seed if seed == setting.nearest(seed) else fixed_seed
    return setting.nearest(float(value or 0))
