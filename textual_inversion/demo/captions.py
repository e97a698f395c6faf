"""Words for scenes of the drawn world. Knows nothing of models."""

from __future__ import annotations

import random

from textual_inversion.demo.world import Scene

OPENINGS = (
    "a picture of {}",
    "a drawing of {}",
    "a photo of {}",
    "an image of {}",
    "a painting of {}",
    "a rendering of {}",
    "a close-up of {}",
    "a good picture of {}",
    "a simple drawing of {}",
    "{}",
    "{}",
    "{}",
)
GENERIC_NOUNS = ("shape", "thing", "object")


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """A caption of `scene`; without `rng` always the plainest one, with it one of many wordings, some of which leave something unsaid."""
    if rng is None:
        return f"a picture of {_article(_object(scene, scene.shape))}{_place(scene)}, {scene.background} background"
    noun = rng.choice(GENERIC_NOUNS) if rng.random() < 0.05 else scene.shape
    thing = _object(scene, noun, colour=rng.random() > 0.08, swap=rng.random() < 0.2, say_plain=rng.random() < 0.25)
    subject = rng.choice(OPENINGS).format(_article(thing) if rng.random() < 0.8 else thing)
    place = _place(scene)
    if rng.random() > 0.93:
        return subject + place
    if rng.random() < 0.15:
        setting = f"on the {scene.position}, {scene.background} background" if place else f"{scene.background} background"
        return f"{setting}, {subject}"
    return subject + ("," if place and rng.random() < 0.3 else "") + place + _ground(scene, rng)


def _object(scene: Scene, noun: str, *, colour: bool = True, swap: bool = False, say_plain: bool = False) -> str:
    words = [scene.colour] if colour else []
    if scene.pattern != "plain" or say_plain:
        words.insert(0 if swap else len(words), scene.pattern)
    return " ".join([*words, noun])


def _article(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _place(scene: Scene) -> str:
    return "" if scene.position == "centre" else f" on the {scene.position}"


def _ground(scene: Scene, rng: random.Random) -> str:
    colour = scene.background
    wordings = (
        f", {colour} background",
        f" on a {colour} background",
        f" with a {colour} background",
        f" in front of a {colour} background",
    )
    return rng.choice(wordings)
