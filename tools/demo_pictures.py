"""Draws the demonstration's training pictures: `python -m tools.demo_pictures`."""

from __future__ import annotations

import random
from dataclasses import replace

from textual_inversion.demo.run import CONCEPT, PICTURES
from textual_inversion.demo.world import draw, random_scene

SETTINGS = (("white", "centre"), ("yellow", "left"), ("green", "centre"), ("red", "right"), ("black", "centre"), ("orange", "right"))


def main() -> None:
    rng = random.Random(7)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for index, (background, position) in enumerate(SETTINGS, start=1):
        drawn = random_scene(rng, background=background, colour=CONCEPT.colour)
        scene = replace(drawn, shape=CONCEPT.shape, pattern=CONCEPT.pattern, position=position)
        draw(scene).save(PICTURES / f"{index:02}.png", optimize=True)
        place = "" if position == "centre" else f"on the {position}, "
        (PICTURES / f"{index:02}.txt").write_text(f"{place}{background} background\n", encoding="utf-8")


if __name__ == "__main__":
    main()
