"""The main job in a real Chromium, on the checkpoint that ships: create, train, watch, interrupt, come back, find the card, draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textual_inversion.app.engine import Engine
from textual_inversion.hosts.standalone.adapter import DEMO_PICTURES, TINY, StandaloneHost

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (TINY.is_file() and DEMO_PICTURES.is_dir()), reason="the tiny checkpoint or the demo pictures are not there"),
]

PHASE = "document.querySelector('.ti-job')?.dataset.phase"
STEP = "Number(document.querySelector('.ti-count strong')?.textContent || 0)"
STRONG = "((document.querySelector('.ti-faint') || document.querySelector('.ti-strong'))?.getAttribute('d') || '')"


def test_the_main_job(tmp_path: Path, serve: Callable[[Any], Any], open_tab: Callable[..., Any]) -> None:
    engine = Engine(StandaloneHost(tmp_path / "data"))
    with serve(engine) as address:
        tab = open_tab(address)
        create(tab)
        train_fifty_steps(tab)
        interrupt_and_come_back(tab)
        draw_with_the_card(tab)
    card = engine.cards()[0]
    assert (card.name, card.reason) == ("my-word", "")
    assert (card.description.step or 0) > 50


def create(tab: Any) -> None:
    tab.open("Create")
    tab.page.wait_for_selector("#ti_create_button", state="visible")
    tab.fill("create_name", "my-word")
    tab.page.click("#ti_create_button")
    tab.until("document.querySelector('#ti_create_note')?.innerText.includes('is there')", timeout=60_000)


def train_fifty_steps(tab: Any) -> None:
    tab.open("Train")
    tab.until("document.querySelector('#ti_train_name input')?.value === 'my-word'")
    tab.fill("train_steps", "50")
    tab.fill("train_batch_size", "2")
    tab.page.get_by_role("button", name="Previews and copies").click()
    tab.fill("train_preview_every", "25")
    tab.page.click("#ti_train_button")
    tab.until(f"{PHASE} === 'working'", timeout=60_000)
    short = len(tab.until(STRONG))
    tab.until(f"{STRONG}.length > {short + 60}", timeout=60_000)
    tab.until(f"{PHASE} === 'finished' && {STEP} === 50", timeout=120_000)
    tab.until("document.querySelector('.ti-preview').naturalWidth === 128")


def interrupt_and_come_back(tab: Any) -> None:
    tab.until("document.querySelector('#ti_standing')?.innerText.includes('is at step 50')")
    tab.fill("train_steps", "5000")
    tab.page.click("#ti_train_button")
    tab.until(f"{PHASE} === 'working' && {STEP} > 52", timeout=60_000)
    tab.page.reload(wait_until="domcontentloaded")
    tab.until(f"{PHASE} === 'working' && {STEP} > 53", timeout=60_000)
    tab.page.click("#ti_train_stop")
    tab.until(f"{PHASE} === 'interrupted'", timeout=60_000)
    assert "is kept" in tab.text(".ti-notice")


def draw_with_the_card(tab: Any) -> None:
    tab.open("txt2img")
    tab.fill("txt2img_prompt", "a picture of")
    card = tab.page.locator('.ti-card[data-name="my-word"]')
    card.click()
    assert tab.value("txt2img_prompt") == "a picture of my-word"
    tab.type(tab.page.locator("#ti_txt2img_steps input[type=number]"), "4")
    tab.type(tab.page.locator("#ti_txt2img_count input[type=number]"), "1")
    tab.page.click("#ti_generate")
    tab.until("document.querySelectorAll('#ti_gallery img').length >= 1", timeout=60_000)
    assert "my-word" in tab.text("#ti_generate_note")
