"""The demonstration and the checkpoint that ships with it."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from textual_inversion import formats
from textual_inversion.cli import main
from textual_inversion.demo.judge import Setting, follows, judge, look, settings_for, shows
from textual_inversion.demo.run import CONCEPT, NAME, PICTURES, run_demo
from textual_inversion.demo.world import draw
from textual_inversion.diffusion.checkpoint import CheckpointFile, check_family
from textual_inversion.diffusion.model import TINY_CHECKPOINT, TINY_CHECKPOINTS, load_checkpoint

KEYS = [
    *("steps", "seconds", "steps_per_second", "embedding", "pictures"),
    *("concept_before", "concept_after", "prompt_following_before", "prompt_following_after"),
]


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(TINY_CHECKPOINT, device="cpu")


def test_the_tiny_checkpoint_is_small_whole_and_half_precision():
    assert TINY_CHECKPOINT.stat().st_size <= 20_000_000
    file = CheckpointFile.open(TINY_CHECKPOINT)
    with file.reader() as reader:
        stored = {str(reader.tensor(name).dtype) for name in file.shapes if name != "alphas_cumprod"}
    assert stored == {"torch.float16"}


def test_the_yaml_beside_it_tells_its_sizes(model):
    text = TINY_CHECKPOINT.with_suffix(".yaml").read_text(encoding="utf-8")
    assert f"model_channels: {model.unet.config.model_channels}" in text
    assert f"context_dim: {model.unet.config.context_dim}" in text
    assert f"channel_mult: {list(model.unet.config.channel_mult)}" in text
    assert f"ch_mult: {list(model.vae.config.channel_mult)}" in text
    assert re.search(r"target: ldm\.models\.diffusion\.ddpm\.LatentDiffusion", text)


def test_words_that_the_world_never_uses_are_zero(model):
    rows = model.text_encoder.token_table.abs().sum(dim=1)
    used = model.conditioner.tokenizer.encode("a picture of a red striped heart on the left, black background")
    assert (rows[used] > 0).all()
    assert 20 < int((rows > 0).sum()) < 100


def test_the_pictures_that_ship_show_the_concept_and_say_the_rest():
    pictures = sorted(PICTURES.glob("*.png"))
    assert len(pictures) >= 4
    for path in pictures:
        seen = look(Image.open(path))
        words = path.with_suffix(".txt").read_text(encoding="utf-8")
        assert shows(CONCEPT, seen)
        assert f"{seen.background} background" in words
        assert (seen.position == "centre") == ("on the" not in words)
        assert not {CONCEPT.shape, CONCEPT.colour, CONCEPT.pattern} & set(words.split())


def test_the_judge_counts_concept_and_prompt_apart():
    setting = Setting("green", "left")
    seen = look(draw(CONCEPT))
    assert shows(CONCEPT, seen)
    assert not follows(setting, seen)
    assert len(settings_for(CONCEPT)) == 24
    assert setting.prompt("zorb") == "a picture of zorb on the left, green background"


def test_plain_words_draw_the_concept(model):
    words = f"a {CONCEPT.colour} {CONCEPT.pattern} {CONCEPT.shape}"
    verdict = judge(model, words, {}, CONCEPT, settings_for(CONCEPT)[::3])
    assert verdict.concept >= 0.7
    assert verdict.prompt_following >= 0.8


def test_the_demo_command_prints_its_json_and_leaves_its_files(capsys, tmp_path):
    assert main(["demo", "--steps", "3", "--seed", "1", "--out", str(tmp_path / "out"), "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert sorted(result) == sorted(KEYS)
    assert result["steps"] == 3
    assert result["concept_before"] < 0.2
    assert formats.load(result["embedding"]).provenance.step == 3
    sheet = Image.open(result["pictures"])
    assert sheet.width > 1000
    assert len(sheet.getcolors(1 << 20) or range(1 << 20)) > 1000


@pytest.mark.parametrize("family", TINY_CHECKPOINTS)
def test_every_family_in_miniature_learns_a_step(family, capsys, tmp_path):
    file = CheckpointFile.open(TINY_CHECKPOINTS[family])
    assert check_family(file).lower() == family
    assert file.path.stat().st_size <= 28_000_000
    assert file.path.with_suffix(".yaml").is_file(), "WebUIs build their model by it"
    arguments = ["--family", family, "--steps", "1", "--out", str(tmp_path / "out"), "--device", "cpu", "--json"]
    assert main(["demo", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["prompt_following_before"] >= 0.8
    assert formats.load(result["embedding"]).provenance.step == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families_learn_too(family, tmp_path):
    result = run_demo(load_checkpoint(TINY_CHECKPOINTS[family], device="cpu"), tmp_path)
    assert result.concept_before < 0.2
    assert result.concept_after >= 0.85
    assert result.prompt_following_after >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_learns(model, tmp_path, seed):
    result = run_demo(model, tmp_path, seed=seed)
    assert result.concept_before < 0.2
    assert result.concept_after >= 0.85
    assert result.prompt_following_after >= 0.85


@pytest.mark.slow
def test_the_tiny_checkpoint_draws_what_it_is_asked_for(model):
    import random

    from textual_inversion.demo.world import random_scene
    from tools.judge_tiny import pictures_of, shares

    rng = random.Random(123)
    scenes = [random_scene(rng) for _ in range(200)]
    found = shares(scenes, pictures_of(model, scenes, 123))
    assert min(found["colour"], found["background"]) >= 0.97
    assert min(found["shape"], found["pattern"]) >= 0.90


def test_the_name_of_the_demo_is_no_word_of_the_vocabulary(model):
    assert len(model.conditioner.tokenizer.encode(NAME)) > 1
