"""The settings in the text that WebUIs write into a picture: the prompt, the negative prompt, and a line of facts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from textual_inversion.errors import TextualInversionError
from textual_inversion.settings.generation import SAMPLERS, GenerationSettings
from textual_inversion.settings.schema import settings_of

_NEGATIVE = "Negative prompt:"
_FACTS = re.compile(r"Steps: \d+, \w")  # begins the last line
_FACT = re.compile(r'\s*([A-Z][\w \-/]*):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")
_NUMBERS = {"Steps": "steps", "CFG scale": "cfg_scale", "Seed": "seed", "Clip skip": "clip_skip"}


def settings_in(text: str) -> Mapping[str, Any]:
    """The fields of `GenerationSettings` in the text of a picture, as far as it has them and they can be used here."""
    lines = text.strip().splitlines()
    place = next((place for place in range(len(lines) - 1, -1, -1) if _FACTS.match(lines[place].strip())), len(lines))
    prompt, _, negative = "\n".join(lines[:place]).partition(_NEGATIVE)
    found: dict[str, Any] = {"prompt": prompt.strip(), "negative_prompt": negative.strip()}
    facts = {name: value.strip().strip('"') for name, value in _FACT.findall(" ".join(lines[place:]))}
    found |= {field: facts[name] for name, field in _NUMBERS.items() if name in facts}
    if size := _SIZE.fullmatch(facts.get("Size", "")):
        found |= {"width": size[1], "height": size[2]}
    if sampler := _sampler(facts):
        found["sampler"] = sampler
    return {name: value for name, value in found.items() if _is_usable(name, value)}


def _sampler(facts: Mapping[str, str]) -> str:
    """The sampler by its name here; newer WebUIs write its schedule apart. Empty where there is no such sampler here."""
    known = {name.lower(): name for name in SAMPLERS}
    alone = facts.get("Sampler", "").lower()
    return known.get(f"{alone} {facts.get('Schedule type', '')}".lower(), known.get(alone, ""))


def _is_usable(name: str, value: str) -> bool:
    """Whether the setting may have this value."""
    setting = next(each for each in settings_of(GenerationSettings) if each.name == name)
    try:
        setting.check(setting.clean(value))
    except TextualInversionError:
        return False
    return True
