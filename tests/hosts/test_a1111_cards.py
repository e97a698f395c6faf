"""The Textual Inversion page of a real A1111, in a browser: every file on it, and all that the host offers for a card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.hosts.a1111_browser import wait_for
from tests.hosts.conftest import WebUI

pytestmark = [pytest.mark.hosts, pytest.mark.browser]

CARDS = "#txt2img_textual_inversion_cards .card"
FITTING = {"plain": 1, "with-dash": 2, "toy (new)": 1, "c++": 1, "dream": 2, "dream-neg": 2, "<i>odd": 1}


class Page:
    """The cards page and what a person does on it."""

    def __init__(self, page: Any) -> None:
        self.page, self.errors = page, []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.wait_for_selector(CARDS, state="attached", timeout=90_000)
        self.page.wait_for_timeout(700)
        self.page.click("#txt2img_extra_tabs > .tab-nav button:has-text('Textual Inversion')")
        self.refresh()

    def refresh(self) -> None:
        self.page.click("#txt2img_textual_inversion_extra_refresh")
        self.page.wait_for_timeout(2500)  # where nothing has changed, nothing on the page tells that it is done

    def told(self) -> dict[str, tuple[bool, str]]:
        read = "(cards) => cards.map((c) => [c.dataset.name, !('tiUnfit' in c.dataset), c.querySelector('.description').textContent])"
        return {name: (fits, text) for name, fits, text in self.page.eval_on_selector_all(CARDS, read)}

    def shown(self) -> list[str]:
        return list(self.page.eval_on_selector_all(f"{CARDS}:not(.hidden)", "(cards) => cards.map((card) => card.dataset.name)"))

    def click(self, name: str, part: str = "") -> None:
        find = "(cards, [name, part]) => { const card = cards.find((c) => c.dataset.name === name);"
        act = f"{find} (part ? card.querySelector(part) : card).click(); }}"
        self.page.eval_on_selector_all(CARDS, act, [name, part])
        self.page.wait_for_timeout(150)

    def prompts(self) -> tuple[str, str]:
        read = "(area) => area.value"
        return tuple(self.page.eval_on_selector(f"#txt2img_{kind} textarea", read) for kind in ("prompt", "neg_prompt"))

    def popup(self) -> str:
        self.page.wait_for_selector(".global-popup", state="visible")
        text = self.page.text_content(".global-popup-inner")
        self.page.keyboard.press("Escape")
        return str(text)


@pytest.fixture(scope="module")
def folder(a1111: WebUI) -> Path:
    """An embeddings folder with everything that people have in theirs."""
    folder = a1111.data / "embeddings" / "cards"
    (folder / "deep").mkdir(parents=True)
    generator = torch.Generator().manual_seed(2)
    for name, count in FITTING.items():
        save_file({"emb_params": torch.randn(count, 64, generator=generator)}, folder / f"{name}.safetensors")
    save_file({"emb_params": torch.randn(3, 768)}, folder / "sd15.safetensors")
    save_file({"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}, folder / "xl.safetensors")
    save_file({"emb_params": torch.randn(1, 64)}, folder / "deep" / "plain.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"rubbish" * 40)
    (folder / "evil.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (folder / "with-dash.txt").write_text("Mine, <b>bold</b>.", encoding="utf-8")
    (folder / "with-dash.json").write_text("[]", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cards(a1111: WebUI, folder: Path, chromium: str) -> Iterator[Page]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = Page(browser.new_page(viewport={"width": 1400, "height": 1000}))
        page.open(a1111.url)
        yield page
        assert page.errors == []
        browser.close()


def test_every_file_is_there_with_its_facts_or_its_reason(cards: Page) -> None:
    told = cards.told()
    for name, count in FITTING.items():
        fits, text = told[name]
        assert fits, text
        assert f"{count} vector" in text
        assert "64 wide" in text
    assert told["with-dash"][1].endswith("Mine, <b>bold</b>.")
    for name, reason in {
        "sd15": "768",
        "xl": "SDXL",
        "damaged": "",
        "evil": "",
        "plain (cards/deep/plain.safetensors)": "same name",
    }.items():
        fits, text = told[name]
        assert not fits
        assert reason in text


@pytest.mark.parametrize(
    ("name", "prompt", "negative"),
    [
        ("plain", "plain", ""),
        ("with-dash", "with-dash", ""),
        ("toy (new)", r"toy \(new\)", ""),
        ("c++", "c++", ""),
        ("dream", "dream", "dream-neg"),
    ],
)
def test_a_click_inserts_the_word_and_the_next_takes_it_out(cards: Page, name: str, prompt: str, negative: str) -> None:
    cards.click(name)
    assert tuple(text.strip() for text in cards.prompts()) == (prompt, negative)
    cards.click(name)
    assert cards.prompts() == ("", "")


def test_a_click_on_what_does_not_fit_says_why(cards: Page) -> None:
    cards.click("sd15")
    assert cards.prompts() == ("", "")
    assert "768" in cards.popup()


@pytest.mark.parametrize(("term", "name"), [("SDXL", "xl"), ("3 vectors", "sd15"), ("cards/deep", "plain (cards/deep/plain.safetensors)")])
def test_the_search_finds_facts_and_folders(cards: Page, term: str, name: str) -> None:
    search = "#txt2img_textual_inversion_extra_search"
    cards.page.fill(search, term)
    cards.page.wait_for_timeout(150)
    assert name in cards.shown()
    assert "plain" not in cards.shown()
    cards.page.fill(search, "")
    cards.page.wait_for_timeout(150)


def test_sorting_by_name(cards: Page) -> None:
    cards.page.click("#txt2img_textual_inversion_extra_sort_name")
    cards.page.wait_for_timeout(150)
    plain = [name for name in cards.shown() if name in ("c++", "dream", "plain", "xl")]
    assert plain == ["c++", "dream", "plain", "xl"]
    cards.page.click("#txt2img_textual_inversion_extra_sort_path")


def test_the_facts_of_the_file_are_behind_the_info_button(cards: Page) -> None:
    cards.click("xl", ".metadata-button")
    assert "clip_g 1280" in cards.popup()


def test_the_edit_form_keeps_notes(cards: Page, folder: Path) -> None:
    cards.click("plain", ".edit-button")
    cards.page.wait_for_selector(".global-popup .edit-user-metadata-buttons", state="visible")
    cards.page.wait_for_timeout(700)
    form = cards.page.locator("#txt2img_textual_inversion_edit_user_metadata")
    form.locator("textarea").nth(1).fill("described here")
    form.locator("textarea").nth(2).fill("noted there")
    form.locator("button:has-text('Save')").click()
    cards.page.wait_for_function("document.body.textContent.includes('described here')")
    assert json.loads((folder / "plain.json").read_text()) == {"description": "described here", "notes": "noted there"}
    assert cards.told()["plain"][1] == "1 vector · 64 widedescribed here"


def test_a_picture_becomes_the_cards_own(cards: Page, folder: Path) -> None:
    cards.page.evaluate("{ const e = document.querySelector('#txt2img_steps input'); e.value = 1; updateInput(e); }")
    cards.page.click("#txt2img_generate")
    cards.page.wait_for_selector("#txt2img_gallery img", state="attached", timeout=90_000)
    cards.page.wait_for_timeout(1000)
    cards.click("dream", ".edit-button")
    cards.page.wait_for_selector(".global-popup .edit-user-metadata-buttons", state="visible")
    cards.page.wait_for_timeout(700)
    cards.page.click("#txt2img_textual_inversion_edit_user_metadata button:has-text('Replace preview')")
    cards.page.wait_for_selector(f"{CARDS}[data-name=dream] img.preview", state="attached")
    cards.page.keyboard.press("Escape")
    assert (folder / "dream.preview.png").is_file()


def test_a_new_file_is_there_and_usable_after_a_refresh(cards: Page, folder: Path, a1111: WebUI) -> None:
    save_file({"emb_params": torch.randn(1, 64)}, folder / "deep" / "later.safetensors")
    cards.refresh()
    assert cards.told()["later"][0]
    assert "later" in a1111.get("/sdapi/v1/embeddings")["loaded"]


def test_the_settings_of_the_page_hold(cards: Page, a1111: WebUI) -> None:
    options = {"textual_inversion_card_as_tag": True, "extra_networks_tree_view_style": "Tree", "extra_networks_card_show_desc": False}
    before = {key: value for key, value in a1111.get("/sdapi/v1/options").items() if key in options}
    a1111.post("/sdapi/v1/options", **options)
    try:
        cards.refresh()
        labels = cards.page.eval_on_selector_all(
            "#txt2img_textual_inversion_tree .tree-list-item-label", "(all) => all.map((e) => e.textContent.trim())"
        )
        assert {"cards", "deep", "plain (cards/deep/plain.safetensors)", "xl", "<i>odd"} <= set(labels)
        told = cards.told()
        assert told["with-dash"][1] == ""
        assert told["sd15"][1] != ""
        cards.click("toy (new)")
        assert cards.prompts()[0].strip() == "<toy (new):1>"
        cards.click("toy (new)")
        cards.page.wait_for_selector("#txt2img_textual_inversion_tree .tree-list-item-label")
    finally:
        a1111.post("/sdapi/v1/options", **before)


def log_says(a1111: WebUI, line: str) -> int:
    return a1111.log.read_text(encoding="utf-8", errors="replace").count(line)


def test_after_a_reload_of_the_page_there_is_one_of_everything(cards: Page, a1111: WebUI) -> None:
    cards.refresh()
    known = cards.told()
    said, started = log_says(a1111, "Restarting UI"), log_says(a1111, "Startup time:")
    cards.page.evaluate("document.querySelector('#settings_restart_gradio').click()")
    wait_for(lambda: log_says(a1111, "Restarting UI") > said, 60, "the reload")
    cards.page.goto("about:blank")  # else the page reloads itself in the middle of what follows
    wait_for(lambda: log_says(a1111, "Startup time:") > started, 120, "the host")
    cards.errors.clear()  # of the page that went away
    cards.open(a1111.url)
    assert cards.told() == known
    assert cards.page.locator("#txt2img_extra_tabs > .tab-nav button:has-text('Textual Inversion')").count() == 1
    assert len([path for path in a1111.get("/openapi.json")["paths"] if path.startswith("/textual-inversion/v1/")]) == 6
    a1111.post("/sdapi/v1/txt2img", prompt="<plain:1.2>", steps=1, width=64, height=64)
    assert a1111.get("/test/last")["prompts"]["all_prompts"] == ["(plain:1.2)"]
