"""The drawn world, its captions and the checker that names what a picture shows."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from PIL import Image

from textual_inversion.demo.judge import look
from textual_inversion.demo.world import COLOURS, PATTERNS, SHAPES, SIZE, Scene, caption, draw, random_scene

PARTS = ("shape", "colour", "pattern", "background", "position")


def wrong_parts(scene: Scene, picture: Image.Image) -> list[str]:
    seen = look(picture)
    return [part for part in PARTS if getattr(seen, part) != getattr(scene, part)]


def test_the_checker_is_right_on_99_percent_of_1000_drawn_pictures():
    rng = random.Random(42)
    scenes = [random_scene(rng) for _ in range(1000)]
    mistaken = [scene for scene in scenes if wrong_parts(scene, draw(scene))]
    assert len(mistaken) <= 10, mistaken[:3]


def test_the_checker_reads_noisy_and_soft_pictures():
    rng = random.Random(1)
    noise = np.random.default_rng(1)
    scenes = [random_scene(rng) for _ in range(100)]
    mistaken = 0
    for scene in scenes:
        soft = draw(scene).resize((64, 64), Image.Resampling.BILINEAR).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        speckled = np.asarray(soft, np.float32) + noise.normal(0, 8, (SIZE, SIZE, 3))
        mistaken += bool(wrong_parts(scene, Image.fromarray(speckled.clip(0, 255).astype(np.uint8))))
    assert mistaken <= 5


def test_the_checker_does_not_see_what_is_not_there():
    for name, rgb in COLOURS.items():
        seen = look(Image.new("RGB", (SIZE, SIZE), rgb))
        assert (seen.background, seen.shape, seen.colour) == (name, "", "")
    speckles = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    seen = look(Image.fromarray(speckles))
    assert (seen.shape, seen.colour, seen.pattern, seen.position) == ("", "", "", "")


def test_each_part_of_a_scene_changes_the_verdict():
    scene = Scene("heart", "red", "striped", "white")
    for part, value in (("shape", "moon"), ("colour", "blue"), ("pattern", "plain"), ("background", "black"), ("position", "left")):
        assert wrong_parts(scene, draw(replace(scene, **{part: value}))) == [part]


def test_scenes_are_even_and_fixed_parts_stay():
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(4000)]
    for part, values in (("shape", SHAPES), ("pattern", PATTERNS), ("colour", tuple(COLOURS))):
        counts = [sum(getattr(scene, part) == value for scene in scenes) for value in values]
        assert min(counts) > 0.75 * len(scenes) / len(values)
    assert all(scene.colour != scene.background for scene in scenes)
    assert all(random_scene(rng, background="red").background == "red" for _ in range(50))


def test_the_same_seed_draws_the_same_picture():
    first, second = (draw(random_scene(random.Random(9))) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.size == (SIZE, SIZE)


def test_captions_say_only_what_is_there():
    rng = random.Random(3)
    for _ in range(500):
        scene = random_scene(rng)
        words = set(caption(scene, rng).replace(",", " ").split())
        others = (set(SHAPES) - {scene.shape}) | (set(PATTERNS) - {scene.pattern}) | (set(COLOURS) - {scene.colour, scene.background})
        assert not words & others
        assert not words & ({"left", "right"} - {scene.position})


def test_the_plain_caption_says_everything():
    scene = Scene("star", "orange", "dotted", "green", "left")
    assert caption(scene) == "a picture of an orange dotted star on the left, green background"
