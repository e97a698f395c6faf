"""What the Train page does inside another WebUI's page: follows its checkpoint, takes its txt2img settings, keeps its own keys."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr
import pytest

from textual_inversion.app.actions import DRAWING_SETTINGS, preview_settings
from textual_inversion.app.job import JobKind
from textual_inversion.hosts.fake import FakeEngine
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.ui.page import TAB_ID, TrainBlocks, build_train_page, draw_train_tab

TXT2IMG = ("a cat <lora:x:1>", "blurry", 25, "Euler a", 7.5, 42, 520, 512)


def built(engine: FakeEngine) -> Any:
    with gr.Blocks():
        return build_train_page(engine)


@pytest.mark.parametrize(
    ("chosen", "shown", "expected"),
    [
        ("fake-512", (128, 128), (512, 512)),
        ("fake-128", (512, 512), (128, 128)),
        ("fake-512", (512, 512), (None, None)),
        ("fake-512", (128, 512), (None, None)),
        ("fake-512", (320, 320), (None, None)),
    ],
)
def test_the_size_follows_the_checkpoint_until_a_person_chooses_one(engine: FakeEngine, chosen: str, shown: Any, expected: Any) -> None:
    page = built(engine)
    engine.host.choose_checkpoint(chosen)
    *_, width, height = page.refresh("my-concept", "", *shown)
    assert (width.get("value"), height.get("value")) == expected


def test_looking_again_leaves_the_name_that_create_has_put_there_meanwhile(engine: FakeEngine) -> None:
    page = built(engine)
    for name in ("other", "word"):
        engine.create(NewEmbedding(name, "red", 1))
    named, *_ = page.refresh("other", "", 128, 128)
    assert "value" not in named
    assert {"other", "word"} <= set(named["choices"])
    named, *_ = page.refresh("my-concept", "", 128, 128)  # the suggestion, which does not exist
    assert named["value"] in ("other", "word")


def test_embeddings_are_listed_when_the_page_is_opened_not_when_it_is_drawn(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.create(NewEmbedding("word", "red", 1))
    listed: list[int] = []
    cards = engine.cards
    monkeypatch.setattr(engine, "cards", lambda **options: listed.append(1) or cards(**options))
    with gr.Blocks(), gr.Tabs():
        page = draw_train_tab(engine)
    assert not listed
    named, *_ = page.refresh(page.train["name"].value, "", 128, 128)
    assert (named["value"], named["choices"]) == ("word", ["word"])


def test_a_page_that_is_opened_while_pictures_are_preprocessed_shows_the_latest_embedding(engine: FakeEngine) -> None:
    engine.create(NewEmbedding("word", "red", 1))
    with gr.Blocks(), gr.Tabs():
        page = draw_train_tab(engine)
    done = threading.Event()
    engine.job.start(JobKind.PREPROCESS, "photos", lambda listener, should_stop: str(done.wait(10)))
    named, *_ = page.refresh(page.train["name"].value, "", 128, 128)
    done.set()
    assert engine.job.wait(10)
    assert named["value"] == "word"


def test_previews_take_txt2img_settings() -> None:
    given = preview_settings(TXT2IMG, fixed_seed=3)
    assert given == {
        "preview_prompt": "a cat",
        "preview_negative_prompt": "blurry",
        "preview_steps": 25,
        "preview_sampler": "Euler a",
        "preview_cfg_scale": 7.5,
        "preview_seed": 42,
        "preview_width": 520,
        "preview_height": 512,
    }
    TrainingConfig("x", images="y", **given)


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("preview_seed", -1, "preview_seed", 3),
        ("preview_seed", None, "preview_seed", 3),
        ("preview_sampler", "DPM fast", "preview_sampler", "DPM++ 2M Karras"),
        ("preview_sampler", "euler A", "preview_sampler", "Euler a"),
        ("preview_steps", 200, "preview_steps", 150),
        ("preview_cfg_scale", 0.5, "preview_cfg_scale", 1.0),
        ("preview_width", 517, "preview_width", 512),
        ("preview_height", None, "preview_height", 64),
    ],
)
def test_what_previews_cannot_do_is_brought_into_range(name: str, value: Any, field: str, expected: Any) -> None:
    values = [value if key == name else given for key, given in zip(DRAWING_SETTINGS, TXT2IMG, strict=True)]
    settings = preview_settings(values, fixed_seed=3)
    assert settings[field] == expected
    TrainingConfig("x", images="y", **settings)


def test_the_tab_opens_first_and_is_saved_under_keys_of_its_own(engine: FakeEngine) -> None:
    with gr.Blocks(), gr.Tabs() as around:
        with gr.Tab("Theirs", id="theirs"):
            gr.Number(1, label="Batch size")
        page = draw_train_tab(engine, first=True)
    assert around.selected == TAB_ID
    parts = [*page.create.values(), *page.preprocess.values(), *page.train.values()]
    assert all(getattr(part, "custom_script_source", None) or getattr(part, "do_not_save_to_config", False) for part in parts)


def test_the_choice_is_offered_where_there_is_a_txt2img_page(engine: FakeEngine) -> None:
    assert "as_txt2img" not in built(engine).parts
    with gr.Blocks():
        drawing = [gr.Textbox(), gr.Textbox(), gr.Slider(), gr.Dropdown(), gr.Slider(), gr.Number(), gr.Slider(), gr.Slider()]
        assert "as_txt2img" in build_train_page(engine, drawing_settings=drawing).parts


def test_a_page_that_is_taken_whole_is_drawn_where_it_is_rendered(engine: FakeEngine) -> None:
    taken = TrainBlocks(engine)
    with gr.Blocks() as around, gr.Tabs(), gr.Tab("Train", elem_id="tab_train") as tab:
        taken.render()
    assert tab.children == taken.children
    assert {"ti_train_button", "ti_create_button"} <= {block.elem_id for block in around.blocks.values()}


def test_a_page_that_cannot_be_drawn_does_not_cost_the_programs_others(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Any:
        raise OSError("stale file handle")

    monkeypatch.setattr(engine.host, "checkpoint", fail)
    with gr.Blocks() as around, gr.Tabs():
        with gr.Tab("Train"):
            TrainBlocks(engine).render()
        with gr.Tab("Settings"):
            gr.Button("Apply", elem_id="apply")
    assert "apply" in {block.elem_id for block in around.blocks.values()}
    assert any("could not be drawn" in str(getattr(block, "value", "")) for block in around.blocks.values())
    assert "stale file handle" in caplog.text
