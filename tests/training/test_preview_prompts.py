"""Several prompts of previews, each with its own negative prompt and seed, and a picture for each at every step."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.errors import ConfigError
from textual_inversion.settings.generation import MAX_SEED
from textual_inversion.settings.previews import MOST
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.events import CopySaved, Message, PreviewDrawn
from textual_inversion.training.preview_prompts import PreviewPrompt, preview_prompts
from textual_inversion.training.trainer import train

SETTINGS = TrainingConfig("cat", "pictures", preview_negative_prompt="dog", preview_seed=3)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", [PreviewPrompt("a [name]", "dog", 3)]),
        ("a cat", [PreviewPrompt("a cat", "dog", 3)]),
        ("a cat\n\n  a hat  ", [PreviewPrompt("a cat", "dog", 3), PreviewPrompt("a hat", "dog", 3)]),
        ("a cat --n blurry, bad --d 7", [PreviewPrompt("a cat", "blurry, bad", 7)]),
        ("a cat --d 8 --n x", [PreviewPrompt("a cat", "x", 8)]),
        ("a well--known cat", [PreviewPrompt("a well--known cat", "dog", 3)]),
    ],
)
def test_a_line_is_a_row(text: str, rows: list[PreviewPrompt]) -> None:
    assert preview_prompts(replace(SETTINGS, preview_prompt=text), "a [name]") == rows


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=200))
def test_any_text_is_some_rows_or_refused(text: str) -> None:
    config = SETTINGS
    with suppress(ConfigError):
        config = replace(SETTINGS, preview_prompt=text)
    rows = preview_prompts(config, "a cat")
    assert 1 <= len(rows) <= MOST
    assert all(0 <= row.seed <= MAX_SEED for row in rows)


@pytest.mark.parametrize("seed", ["7x", "-1", "1" * 20, str(MAX_SEED + 1), "x"])
def test_a_bad_seed_is_refused_with_its_line(seed: str) -> None:
    with pytest.raises(ConfigError, match=f"'a hat --d {seed}' has the seed '{seed}'"):
        replace(SETTINGS, preview_prompt=f"a cat --d {MAX_SEED}\na hat --d {seed}")


def test_lines_after_the_sixth_are_refused() -> None:
    lines = [f"cat {number}" for number in range(1, 9)]
    assert len(preview_prompts(replace(SETTINGS, preview_prompt="\n".join(lines[:MOST])), "")) == MOST
    with pytest.raises(ConfigError, match=r"There are 8 preview prompts.* 'cat 7'"):
        replace(SETTINGS, preview_prompt="\n".join(lines))


def test_each_prompt_is_drawn_at_each_step(config, model, folder, tmp_path):
    events: list[object] = []
    prompts = "a [name]\na red [name] --d 9"
    config = replace(config, steps=4, preview_every=2, preview_steps=1, preview_prompt=prompts, log_dir=str(tmp_path))
    train(config, model, folder, listener=events.append)
    drawn = [event for event in events if isinstance(event, PreviewDrawn)]
    assert [(event.step, event.row, event.seed) for event in drawn][:2] == [(drawn[0].step, 0, config.preview_seed), (drawn[0].step, 1, 9)]
    assert drawn[-1].step == 4
    assert all((tmp_path / f"thing-{event.step}{'-2' * event.row}.png").is_file() for event in drawn)
    assert len([event for event in events if isinstance(event, CopySaved)]) == len({event.step for event in drawn}), "a copy for each step"


def test_crops_that_cut_much_away_are_told_by_the_run(config, model, folder, pictures):
    from PIL import Image

    Image.effect_noise((400, 64), 90).save(pictures / "wide.png")
    events: list[object] = []
    train(replace(config, steps=3), model, folder, listener=events.append)
    told = [event.text for event in events if isinstance(event, Message) and event.important]
    assert any("84% of wide.png is cropped away" in text for text in told)
