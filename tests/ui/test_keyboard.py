"""The page by keyboard and for screen readers: tabs, lists, focus, cards in thousands, words at the cursor that can be undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from textual_inversion.hosts.fake import FakeEngine, FakeHost
from textual_inversion.settings.creation import NewEmbedding

pytestmark = pytest.mark.browser

LISTS = "[...document.querySelectorAll('ul[role=listbox], ul.options')].filter(list => list.offsetParent).length"
CHOSEN = "document.querySelector('#ti_train_name input')?.value"
PROMPT = "#ti_txt2img_prompt textarea"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> FakeEngine:
    engine = FakeEngine(FakeHost(tmp_path_factory.mktemp("host")), pace=0.001)
    for name in ("aa", "bb", "cc"):
        engine.create(NewEmbedding(name, "cat"))
    return engine


@pytest.fixture(scope="module")
def address(engine: FakeEngine, serve: Callable[[Any], Any]) -> Iterator[str]:
    with serve(engine) as address:
        yield address


def ready(tab: Any) -> None:
    """Wait until the page has asked for the names and chosen one."""
    tab.until("document.querySelector('#ti_standing')?.innerText.includes(' vector')")


def test_a_list_that_tab_has_left_stays_closed_when_a_job_ends(address: str, open_tab: Callable[..., Any]) -> None:
    tab = open_tab(address)
    ready(tab)
    field = tab.page.locator("#ti_train_name input").first
    field.click()
    field.fill("new-one")
    field.press("Tab")
    tab.page.click("#ti_train_button")
    tab.until("document.querySelector('.ti-job')?.dataset.phase === 'finished'")
    tab.until("document.querySelector('#ti_standing')?.innerText.includes('is at step 200')")
    tab.page.wait_for_timeout(1000)
    tab.until(f"{LISTS} === 0")  # a busy page closes it a little later
    assert tab.page.evaluate(CHOSEN) == "new-one"


def test_a_chosen_name_keeps_the_focus_at_its_field(address: str, open_tab: Callable[..., Any]) -> None:
    tab = open_tab(address)
    ready(tab)
    field = tab.page.locator("#ti_train_name input").first
    field.click()
    field.fill("aa")
    field.press("Enter")
    tab.until("document.activeElement?.id === 'ti_train_name'")
    tab.until("document.querySelector('#ti_standing')?.innerText.includes('aa has 1 vector')")
    tab.until(f"{LISTS} === 0")


def test_arrow_keys_go_from_tab_to_tab(address: str, open_tab: Callable[..., Any]) -> None:
    tab = open_tab(address)
    focused = "document.activeElement?.innerText.trim()"
    tab.page.get_by_role("tab", name="Create", exact=True).focus()
    for key, name in (
        ("ArrowRight", "Preprocess"),
        ("ArrowRight", "Train"),
        ("ArrowRight", "Create"),
        ("End", "Train"),
        ("Home", "Create"),
    ):
        tab.page.keyboard.press(key)
        tab.until(f"{focused} === '{name}'")
        tab.page.wait_for_timeout(150)
        assert tab.page.evaluate(focused) == name
    tab.page.wait_for_selector("#ti_create_button", state="visible")


def test_what_has_the_focus_shows_it(address: str, open_tab: Callable[..., Any]) -> None:
    tab = open_tab(address)
    tab.open("txt2img")
    tab.page.wait_for_selector("#ti_txt2img_steps input[type=range]", state="visible")
    tab.page.locator("#ti_txt2img_steps input[type=range]").focus()
    tab.page.keyboard.press("ArrowRight")
    style = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.page.evaluate(style) == "solid"
    assert tab.page.locator("h1").count() == 1


def test_a_word_goes_to_the_cursor_and_can_be_undone(address: str, open_tab: Callable[..., Any]) -> None:
    tab = open_tab(address)
    tab.open("txt2img")
    tab.page.wait_for_selector('.ti-card[data-name="bb"]')
    tab.fill("txt2img_prompt", "a picture, pink")
    box = tab.page.locator(PROMPT)
    box.focus()
    box.evaluate("box => box.setSelectionRange(9, 9)")
    tab.page.locator('.ti-card[data-name="bb"]').click()
    assert box.input_value() == "a picture bb, pink"
    assert tab.page.evaluate("document.activeElement?.dataset.name") == "bb", "the focus stays on the card"
    tab.page.locator('.ti-card[data-name="cc"]').click()
    assert box.input_value() == "a picture bb cc, pink"
    box.focus()
    tab.page.keyboard.press("Control+z")
    assert box.input_value() == "a picture bb, pink"
    tab.page.keyboard.press("Control+z")
    assert box.input_value() == "a picture, pink"


EMPHASIS = [  # the text, the marked part, by how much, and the result
    ("a cat, b", 3, 3, 0.1, "a (cat:1.1), b"),
    ("a (cat:1.1), b", 4, 4, 0.1, "a (cat:1.2), b"),
    ("a (cat:1.1), b", 4, 4, -0.1, "a cat, b"),
    ("a cat, b", 2, 8, -0.1, "a (cat, b:0.9)"),
    ("a <cat> b", 4, 4, 0.1, "a <cat:1.1> b"),
    ("a <cat:1.1> b", 4, 4, -0.1, "a <cat> b"),
    ("a , b", 2, 2, 0.1, None),
    ("a (cat), b", 4, 4, 0.1, "a (cat:1.2), b"),
    (r"a \(cat\), b", 5, 5, 0.1, r"a \((cat:1.1)\), b"),
    ("a (cat:1..2)", 4, 4, 0.1, None),
    ("a <cat:1.2.3>", 4, 4, 0.1, None),
    ("a <cat", 4, 4, 0.1, None),
]


def test_the_habits_of_the_prompt(address: str, open_tab: Callable[..., Any]) -> None:
    tab = open_tab(address)
    tab.open("txt2img")
    tab.page.wait_for_selector('.ti-card[data-name="bb"]')
    for text, start, end, by, result in EMPHASIS:
        found = tab.page.evaluate("given => (window.textualInversion.emphasised(...given) || [null])[0]", [text, start, end, by])
        assert found == result, text
    box = tab.page.locator(PROMPT)
    tab.fill("txt2img_prompt", "")
    box.focus()
    tab.page.keyboard.type("a picture of <b")
    tab.page.wait_for_selector(".ti-complete li[aria-selected=true]")
    assert tab.text(".ti-complete li") == "bb"
    tab.page.keyboard.press("Enter")
    assert box.input_value() == "a picture of <bb>"
    assert tab.page.locator(".ti-complete").count() == 0
    box.evaluate("box => box.setSelectionRange(3, 3)")
    tab.page.keyboard.press("Control+ArrowUp")
    assert box.input_value() == "a (picture:1.1) of <bb>"
    tab.page.keyboard.press("Control+ArrowUp")
    assert box.input_value() == "a (picture:1.2) of <bb>"
    tab.page.keyboard.press("Control+Enter")
    tab.until("document.querySelector('#ti_generate_note')?.innerText.includes('(picture:1.2)')")


def test_a_thousand_cards_stay_in_their_box(engine: FakeEngine, address: str, open_tab: Callable[..., Any]) -> None:
    folder = engine.host.folders().embeddings
    for number in range(1000):
        (folder / f"many-{number}.json").write_text('{"vectors": 1, "step": 0, "size": 128}')
    (folder / f"{'long-' * 19}name.json").write_text('{"vectors": 1, "step": 900, "size": 128}')
    try:
        tab = open_tab(address)
        tab.open("txt2img")
        tab.until("document.querySelector('.ti-cardcount')?.innerText.startsWith('10')")
        assert tab.page.evaluate("document.documentElement.scrollHeight") < 2400
        assert tab.page.locator(".ti-card").count() == 40
        tab.page.evaluate("document.querySelector('.ti-shelf').scrollTo(0, 1e6)")
        tab.until("document.querySelectorAll('.ti-card').length === 80")
        face = tab.page.locator(".ti-card .ti-face").first
        assert face.get_attribute("aria-hidden") == "true", "screen readers hear the name only"
        tab.page.fill(".ti-search", "many-99")
        tab.until("document.querySelectorAll('.ti-card').length === 11")
        assert tab.text(".ti-cardcount").startswith("11 of 10")
        tab.page.fill(".ti-search", "")
        tab.page.select_option(".ti-order", "steps")
        tab.until("document.querySelector('.ti-card')?.dataset.name.startsWith('long-')")
        heights = tab.page.evaluate("[...document.querySelectorAll('.ti-card')].slice(0, 2).map(card => card.offsetHeight)")
        assert heights[0] - heights[1] < 60, "a long name is cut"
        tab.page.select_option(".ti-filter", "good")
        tab.until("document.querySelectorAll('.ti-card').length < 5")
    finally:
        for path in folder.glob("many-*.json"):
            path.unlink()
