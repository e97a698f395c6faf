"""The Preprocess tab in a real Chromium: look, write a caption, leave a picture out, turn a page, come back, preprocess."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ui.test_preprocessing import noise
from textual_inversion.app.review import review_of
from textual_inversion.hosts.fake import FakeEngine

pytestmark = pytest.mark.browser

TILES = "document.querySelectorAll('.ti-tile').length"
SHOWN = "[...document.querySelectorAll('.ti-shot img')].every(image => image.complete && image.naturalWidth > 0)"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(26):
        noise(number, (200, 130)).save(folder / f"{number:02}.png")
    (folder / "00.txt").write_text("a cat")
    (folder / "zz.png").write_text("no picture")
    return folder


def looked_at(tab: Any, photos: Path, target: Path) -> None:
    tab.open("Preprocess")
    tab.page.wait_for_selector("#ti_look_button", state="visible")
    tab.fill("preprocess_source", str(photos))
    tab.fill("preprocess_destination", str(target))
    tab.page.click("#ti_look_button")
    tab.until(f"{TILES} === 24", timeout=60_000)


def test_look_change_and_write(
    tmp_path: Path, photos: Path, engine: FakeEngine, serve: Callable[[Any], Any], open_tab: Callable[..., Any]
) -> None:
    target = tmp_path / "ready"
    with serve(engine) as address:
        tab = open_tab(address)
        looked_at(tab, photos, target)
        tab.until(SHOWN)
        assert "27 pictures, 26 results of 128 × 128" in tab.text("#ti_look_head")
        change_and_come_back(tab, engine)
        tab.page.locator('.ti-tile[data-item="1"] textarea').fill("typed at the last moment")
        tab.page.click("#ti_preprocess_button")
        tab.until("document.querySelector('.ti-phase')?.textContent === 'Preprocessed'", timeout=60_000)
        tab.until(f"{TILES} === 0")
    written = sorted(path.name for path in target.glob("*.png"))
    assert len(written) == 25
    assert not [name for name in written if "-02." in name], "it was left out"
    captions = sorted(path.read_text() for path in target.glob("*.txt"))
    assert captions == ["a dog, sleeping", "typed at the last moment"]


def change_and_come_back(tab: Any, engine: FakeEngine) -> None:
    """Edit a caption, leave a picture out, see both on the server and after a reload; look at the second page and a filter."""
    review = review_of(engine.job)
    assert tab.page.locator('.ti-tile[data-item="0"] textarea').input_value() == "a cat"
    tab.page.locator('.ti-tile[data-item="0"] textarea').fill("a dog, sleeping")
    tab.page.click('.ti-tile[data-item="2"] .ti-shot')
    tab.until("document.querySelector('#ti_look_head').innerText.includes('25 results')")
    assert (review.planned[0].views[0].caption, review.planned[2].chosen) == ("a dog, sleeping", False)
    tab.page.reload(wait_until="domcontentloaded")
    tab.page.wait_for_selector("#ti_pages [role=tab]")
    tab.open("Preprocess")
    tab.until(f"{TILES} === 24")
    assert tab.page.locator('.ti-tile[data-item="0"] textarea').input_value() == "a dog, sleeping"
    assert tab.page.locator('.ti-tile[data-item="2"]').get_attribute("data-out") is not None
    tab.page.click('.ti-look-foot [data-page="1"]')
    tab.until(f"{TILES} === 3")
    tab.page.click('.ti-look-head [data-kind="unreadable"]')
    tab.until(f"{TILES} === 1")
    assert "zz.png" in tab.text(".ti-tile")
    tab.page.click('.ti-look-head [data-kind="all"]')
    tab.until(f"{TILES} === 24")
    assert review.config is not None
    assert tab.value("preprocess_source") == review.config.source, "a new page's form is filled with what was looked at"


def test_pictures_are_seen_on_their_own_tab_only(
    tmp_path: Path, photos: Path, engine: FakeEngine, serve: Callable[[Any], Any], open_tab: Callable[..., Any]
) -> None:
    with serve(engine) as address:
        tab = open_tab(address)
        looked_at(tab, photos, tmp_path / "ready")
        tab.open("Create")
        tab.until("document.querySelector('.ti-lookout').offsetParent === null")
        tab.open("Preprocess")
        tab.until("document.querySelector('.ti-lookout').offsetParent !== null")
        tab.page.click(".ti-look-close")
        tab.until(f"{TILES} === 0")
        assert review_of(engine.job).id == ""
