"""The lines of the setting `preview_prompt`: how many there may be, and what each may say of its own."""

from __future__ import annotations

import re
from typing import Any

from textual_inversion.errors import ConfigError
from textual_inversion.settings.generation import MAX_SEED

MOST = 6  # prompts; each takes as long as the first
OWN = re.compile(r"\s--([nd])\s+(.*?)(?=\s--[nd]\s|$)")  # as kohya's sample prompts have them


def prompt_lines(text: str) -> list[str]:
    """The lines that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_prompts(text: Any) -> str:
    """Refuse more than `MOST` lines, and a seed that is no whole number from 0 to `MAX_SEED`; the answer is always empty.

    Raises:
        ConfigError: with the text of the line.
    """
    lines = prompt_lines(str(text))
    if len(lines) > MOST:
        reason = f"There are {len(lines)} preview prompts, but at most {MOST} are drawn; delete {lines[MOST]!r} and what follows it."
        raise ConfigError(reason, setting="preview_prompt")
    for line in lines:
        for key, value in OWN.findall(line):
            if key == "d" and not _is_seed(value.strip()):
                reason = f"The preview prompt {line!r} has the seed {value.strip()!r}; give a whole number from 0 to {MAX_SEED} after --d."
                raise ConfigError(reason, setting="preview_prompt")
    return ""


def _is_seed(text: str) -> bool:
    return text.isdecimal() and len(text) <= len(str(MAX_SEED)) and int(text) <= MAX_SEED
