"""The prompts of a run's previews: one a line, each with its own negative prompt and seed if it has some."""

from __future__ import annotations

import re
from dataclasses import dataclass

from textual_inversion.settings.generation import MAX_SEED
from textual_inversion.settings.training import TrainingConfig

MOST = 6  # prompts; each takes as long as the first
_OWN = re.compile(r"\s--([nd])\s+(.*?)(?=\s--[nd]\s|$)")  # as kohya's sample prompts have them


@dataclass(frozen=True)
class PreviewPrompt:
    """What one row of the previews shows."""

    prompt: str
    negative_prompt: str
    seed: int


def preview_prompts(config: TrainingConfig, otherwise: str) -> list[PreviewPrompt]:
    """The prompts of the previews in order, at least one and at most `MOST`.

    Args:
        config: a line `a cat in [name] --n blurry --d 7` has a negative prompt and a seed of its own; others have those of the settings.
        otherwise: the prompt where the settings have none.
    """
    lines = [line.strip() for line in config.preview_prompt.splitlines() if line.strip()] or [otherwise]
    return [_parsed(line, config) for line in lines[:MOST]]


def _parsed(line: str, config: TrainingConfig) -> PreviewPrompt:
    own = {key: value.strip() for key, value in _OWN.findall(line)}
    given = own.get("d", "")
    seed = int(given) if given.isdecimal() and len(given) <= len(str(MAX_SEED)) else config.preview_seed
    return PreviewPrompt(_OWN.sub("", line).strip(), own.get("n", config.preview_negative_prompt), min(seed, MAX_SEED))
