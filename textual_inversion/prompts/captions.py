"""Varies the comma-separated tags of a caption. Knows nothing of files or templates."""

from __future__ import annotations

import random

from textual_inversion.errors import ConfigError


def split_tags(caption: str) -> list[str]:
    """The tags between the commas of `caption`, trimmed, empty ones left out."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def shuffle_tags(caption: str, rng: random.Random, keep: int = 0) -> str:
    """The tags of `caption`, the first `keep` in their places and the others in an order drawn from `rng`, joined by `, `."""
    tags = split_tags(caption)
    rest = tags[keep:]
    rng.shuffle(rest)
    return ", ".join(tags[:keep] + rest)


def drop_tags(caption: str, probability: float, rng: random.Random, keep: int = 0) -> str:
    """The tags of `caption`, each behind the first `keep` left out with `probability` (0 to 1), joined by `, `; it may become empty.

    One number is drawn for each such tag whatever the probability, so that later draws from `rng` do not depend on it.

    Raises:
        ConfigError: `probability` is not from 0 to 1.
    """
    if not 0 <= probability <= 1:
        raise ConfigError(f"The chance of leaving out a tag is {probability}; expected a number from 0 to 1.")
    tags = split_tags(caption)
    return ", ".join(tags[:keep] + [tag for tag in tags[keep:] if rng.random() >= probability])
