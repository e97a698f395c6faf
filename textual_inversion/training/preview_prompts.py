"""The prompts of a run's previews: one a line, each with its own negative prompt and seed if it has some."""

from __future__ import annotations

from dataclasses import dataclass

from textual_inversion.settings.previews import OWN, prompt_lines
from textual_inversion.settings.training import TrainingConfig


@dataclass(frozen=True)
class PreviewPrompt:
    """What one row of the previews shows."""

    prompt: str
    negative_prompt: str
    seed: int


def preview_prompts(config: TrainingConfig, otherwise: str) -> list[PreviewPrompt]:
    """The prompts of the previews in order, at least one and at most six, as the settings' check has it.

    Args:
        config: a line `a cat in [name] --n blurry --d 7` has a negative prompt and a seed of its own; others have those of the settings.
        otherwise: the prompt where the settings have none.
    """
    return [_parsed(line, config) for line in prompt_lines(config.preview_prompt) or [otherwise]]


def _parsed(line: str, config: TrainingConfig) -> PreviewPrompt:
    own = {key: value.strip() for key, value in OWN.findall(line)}
    seed = int(own["d"]) if "d" in own else config.preview_seed
    return PreviewPrompt(OWN.sub("", line).strip(), own.get("n", config.preview_negative_prompt), seed)
