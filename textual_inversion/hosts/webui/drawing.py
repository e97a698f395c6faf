"""The components of the WebUI's txt2img page that previews may take their settings from. Knows nothing of previews."""

from __future__ import annotations

from typing import Any

from modules import infotext_utils

#: The WebUI's API names and infotext labels, either of which a field may have, in the order of `ui.previews.DRAWING_SETTINGS`.
_FIELDS = (
    ("prompt", "Prompt"),
    ("negative_prompt", "Negative prompt"),
    ("steps", "Steps"),
    ("sampler_name", "Sampler"),
    ("cfg_scale", "CFG scale"),
    ("seed", "Seed"),
    ("width", "Size-1"),
    ("height", "Size-2"),
)


def txt2img_components() -> list[Any]:
    """Prompt, negative prompt, steps, sampler, guidance, seed, width and height; empty where one of them is missing."""
    fields = infotext_utils.paste_fields.get("txt2img", {}).get("fields") or []
    known: dict[Any, Any] = {}
    for field in reversed(fields):
        for name in (getattr(field, "api", None), field[1]):
            if isinstance(name, str):
                known[name] = field[0]
    found = [known.get(api, known.get(label)) for api, label in _FIELDS]
    return found if None not in found else []
