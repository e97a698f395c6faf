"""Two numbers for an embedding in the drawn world: does the picture show the concept, does it still follow the rest of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from textual_inversion.demo.checker import Sighting, look
from textual_inversion.demo.world import COLOURS, SIZE, Scene
from textual_inversion.diffusion.generate import GenerationSettings, draw_prompts
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.embedding import Embedding

_AT_ONCE = 12  # pictures in one batch


@dataclass(frozen=True)
class Setting:
    """What the rest of a prompt asks for: a background and a place."""

    background: str
    position: str = "centre"

    def prompt(self, name: str) -> str:
        """The prompt that puts `name` into this setting."""
        place = "" if self.position == "centre" else f" on the {self.position}"
        return f"a picture of {name}{place}, {self.background} background"


@dataclass(frozen=True)
class Verdict:
    """How an embedding did.

    Attributes:
        concept: share of pictures (0 to 1) whose shape, colour and pattern are all the concept's.
        prompt_following: share whose background and position are both as asked.
        pictures: what was judged, in the order of the settings.
    """

    concept: float
    prompt_following: float
    pictures: tuple[Image.Image, ...]


def settings_for(concept: Scene) -> list[Setting]:
    """Every background that the concept can stand out from, at each place: 24 settings."""
    grounds = [colour for colour in COLOURS if colour != concept.colour]
    return [Setting(ground, position) for ground in grounds for position in ("centre", "left", "right")]


def judge(
    model: StableDiffusion,
    name: str,
    embeddings: Mapping[str, Embedding],
    concept: Scene,
    settings: Sequence[Setting],
    *,
    seed: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Draw `name` (an embedding or plain words) once in each setting and look at the pictures."""
    sampling = GenerationSettings(prompt="", steps=20, cfg_scale=4.0, width=SIZE, height=SIZE)
    pictures: list[Image.Image] = []
    for start in range(0, len(settings), _AT_ONCE):
        part = settings[start : start + _AT_ONCE]
        prompts = [(setting.prompt(name), seed + start + index) for index, setting in enumerate(part)]
        pictures += draw_prompts(model, prompts, sampling, embeddings)
        if progress:
            progress(len(pictures), len(settings))
    seen = [look(picture) for picture in pictures]
    return Verdict(
        concept=sum(shows(concept, sighting) for sighting in seen) / len(seen),
        prompt_following=sum(follows(setting, sighting) for setting, sighting in zip(settings, seen)) / len(seen),
        pictures=tuple(pictures),
    )


def shows(concept: Scene, seen: Sighting) -> bool:
    """Shape, colour and pattern are the concept's."""
    return (seen.shape, seen.colour, seen.pattern) == (concept.shape, concept.colour, concept.pattern)


def follows(setting: Setting, seen: Sighting) -> bool:
    """Background and place are as asked."""
    return (seen.background, seen.position) == (setting.background, setting.position)
