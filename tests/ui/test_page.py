"""The standalone page in a real Chromium, over the fake engine: what a person sees and does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ui.conftest import emptied
from textual_inversion.app.job import JobKind
from textual_inversion.hosts.fake import FakeEngine, FakeHost
from textual_inversion.settings.creation import NewEmbedding

pytestmark = pytest.mark.browser

PHASE = "document.querySelector('.ti-job')?.dataset.phase"
STRONG = "(document.querySelector('.ti-faint') || document.querySelector('.ti-strong'))?.getAttribute('d')"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> FakeEngine:
    return FakeEngine(FakeHost(tmp_path_factory.mktemp("host")), pace=0.005)


@pytest.fixture(scope="module")
def address(engine: FakeEngine, serve: Callable[[Any], Any]) -> Iterator[str]:
    """One server for all tests here: gradio takes seconds to start."""
    with serve(engine) as address:
        yield address


@pytest.fixture(autouse=True)
def fresh(engine: FakeEngine) -> None:
    emptied(engine, pace=0.005)


def prompt(tab: Any) -> str:
    return str(tab.value("txt2img_prompt"))


def test_the_first_click_trains_and_the_word_can_be_tried(address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    engine.pace = 0.02  # so that a slow machine sees it at work, too
    tab = open_tab(address)
    tab.until("document.querySelector('.ti-live')?.innerText.includes('Nothing is being trained')")
    tab.until("document.querySelector('#ti_strip')?.innerText.includes('4 pictures')")
    tab.page.click("#ti_train_button")
    tab.until(f"{PHASE} === 'working'")
    short = tab.until(STRONG)
    tab.until(f"({STRONG} || '').length > {len(short) + 200}")
    assert "is created first" in tab.text("#ti_train_note")
    tab.until(f"{PHASE} === 'finished'")
    assert tab.text(".ti-count") == "200 / 200"
    tab.until("document.querySelector('.ti-preview').naturalWidth === 128")
    assert "Step 200" in tab.text(".ti-caption")
    tab.page.locator(".ti-range").focus()
    tab.page.keyboard.press("ArrowLeft")
    assert "Step 150" in tab.text(".ti-caption")
    tab.until("document.querySelector('#ti_standing').innerText.includes('is at step 200')")
    tab.page.get_by_role("button", name="Try it").first.click()
    tab.until("document.querySelector('#ti_txt2img_prompt textarea')?.value === 'a picture of my-concept'")
    tab.until("document.querySelector('.ti-card')?.getAttribute('aria-pressed') === 'true'")


def test_interrupt_keeps_what_was_learned_and_a_reload_finds_it(address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    engine.pace = 0.3  # the job outlives two page loads on a slow machine
    tab = open_tab(address)
    tab.page.click("#ti_train_button")
    tab.until(f"{PHASE} === 'working'")
    second = open_tab(address, width=420, height=800)
    second.until(f"{PHASE} === 'working'")
    tab.page.reload(wait_until="domcontentloaded")
    tab.until(f"{PHASE} === 'working'")
    tab.page.wait_for_selector("#ti_train_stop")
    tab.until("document.querySelector('#ti_train_stop').ariaDisabled === 'false'")
    tab.page.click("#ti_train_stop")
    tab.until(f"{PHASE} === 'interrupted'")
    assert "is kept" in tab.text(".ti-notice")
    second.until(f"{PHASE} === 'interrupted'")
    card = engine.cards()[0]
    assert 0 < (card.description.step or 0) < 200


def test_create_and_what_it_refuses(address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    tab = open_tab(address)
    tab.open("Create")
    tab.page.wait_for_selector("#ti_create_button", state="visible")
    tab.fill("create_name", "../cat")
    tab.page.click("#ti_create_button")
    tab.until("document.querySelector('#ti_create_note')?.innerText.includes('has a path in it')")
    tab.fill("create_name", "sakura-b")
    tab.fill("create_initializer_text", "soft flower")
    tab.page.click("#ti_create_button")
    tab.until("document.querySelector('#ti_create_note').innerText.includes('2 vectors')")
    assert [card.name for card in engine.cards()] == ["sakura-b"]
    tab.open("Train")
    tab.until("document.querySelector('#ti_train_name input').value === 'sakura-b'")


def test_a_fault_is_marked_at_its_field_until_it_is_mended(address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    tab = open_tab(address)
    tab.fill("train_learning_rate", "fast")
    tab.page.click("#ti_train_button")
    tab.until("document.querySelector('#ti_train_learning_rate.ti-fault')")
    assert tab.page.locator(".ti-fault").count() == 1
    tab.fill("train_learning_rate", "0.005")
    tab.page.click("#ti_train_button")
    tab.until("!document.querySelector('.ti-fault')")


def test_cards_go_into_the_prompt_edited_last_and_out_again(address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    for name in ("cat", "cat-2", "harbour"):
        engine.create(NewEmbedding(name))
    engine.host.choose_checkpoint("fake-512")
    engine.create(NewEmbedding("large"))
    engine.host.choose_checkpoint("fake-128")
    tab = open_tab(address)
    tab.open("txt2img")
    tab.until("document.querySelectorAll('.ti-card').length === 4")
    card = lambda name: tab.page.locator(f'.ti-card[data-name="{name}"]')  # noqa: E731
    tab.fill("txt2img_prompt", "a picture of")
    card("cat-2").click()
    card("cat").click()
    assert prompt(tab) == "a picture of cat-2 cat"
    card("cat-2").focus()
    tab.page.keyboard.press("Enter")
    assert prompt(tab) == "a picture of cat"
    tab.until("document.querySelector('#ti_tokens').innerText === '4/75'")
    tab.page.locator("#ti_txt2img_negative_prompt textarea").focus()
    card("harbour").click()
    assert (prompt(tab), tab.value("txt2img_negative_prompt")) == ("a picture of cat", "harbour")
    card("large").click(force=True)
    assert "large" not in prompt(tab) + tab.value("txt2img_negative_prompt")
    assert "made for 512 px" in card("large").inner_text()
    tab.page.fill(".ti-search", "HARB")
    assert [card(name).is_visible() for name in ("harbour", "cat")] == [True, False]
    engine.create(NewEmbedding("harbour-2"))
    tab.page.click(".ti-refresh")
    tab.until("document.querySelector('.ti-card[data-name=\"harbour-2\"]') !== null")


def test_cards_are_never_said_to_be_missing_when_they_are_there(address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    engine.create(NewEmbedding("word", "red", 1))  # since the server was started
    tab = open_tab(address)
    tab.page.evaluate("""() => {
        window.said = "";
        const listen = () => { window.said += document.querySelector("#ti_cards")?.innerText || ""; };
        new MutationObserver(listen).observe(document, { childList: true, subtree: true });
    }""")
    tab.open("txt2img")
    tab.until("document.querySelector('.ti-card[data-name=\"word\"]')")
    assert "No embeddings" not in tab.page.evaluate("window.said")


def test_a_card_with_a_negative_half_brings_it_into_the_negative_prompt(
    address: str, open_tab: Callable[..., Any], engine: FakeEngine
) -> None:
    for name in ("cat", "cat-neg", "dog"):
        engine.create(NewEmbedding(name))
    tab = open_tab(address)
    tab.open("txt2img")
    tab.until("document.querySelectorAll('.ti-card').length === 3")
    both = lambda: (prompt(tab), tab.value("txt2img_negative_prompt"))  # noqa: E731
    click = lambda name: tab.page.locator(f'.ti-card[data-name="{name}"]').click()  # noqa: E731
    tab.fill("txt2img_prompt", "a")
    tab.page.locator("#ti_txt2img_negative_prompt textarea").focus()
    click("cat")
    assert both() == ("a cat", "cat-neg")
    assert tab.page.locator(".ti-card[aria-pressed=true]").count() == 2
    click("cat-neg")
    assert both() == ("a cat", "")
    click("cat")
    assert both() == ("a", "")
    tab.page.locator("#ti_txt2img_prompt textarea").focus()
    click("cat-neg")
    click("cat")
    assert both() == ("a cat", "cat-neg")


def test_the_train_tab_tells_what_is_left_out_and_why(address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    engine.create(NewEmbedding("cat"))
    engine.host.choose_checkpoint("fake-512")
    engine.create(NewEmbedding("large"))
    engine.host.choose_checkpoint("fake-128")
    tab = open_tab(address)
    tab.open("Train")
    tab.page.fill("#ti_train_name input", "large")
    tab.page.keyboard.press("Enter")
    tab.until("document.querySelector('#ti_standing .ti-leftout summary')?.innerText === '1 embedding cannot be trained here'")
    tab.page.click("#ti_standing .ti-leftout summary")
    assert "made for 512 px" in tab.text("#ti_standing .ti-leftout li")
    assert "large cannot be trained here: It was made for 512 px" in tab.text("#ti_standing .ti-note-error")


WORDS = [  # a prompt with the word, and without it
    ("cat", ""),
    ("a, cat, b", "a, b"),
    ("a cat b", "a b"),
    ("<cat:1.2> b", "b"),
    ("a (cat:1.1), b", "a, b"),
    ("a (cat)", "a"),
    ("CAT", ""),
    ("concat cat-2 catalogue", "concat cat-2 catalogue"),
]


def test_a_word_is_found_as_it_is_written(address: str, open_tab: Callable[..., Any]) -> None:
    tab = open_tab(address)
    tab.until("window.textualInversion?.withoutWord !== undefined")
    texts = [before for before, _ in WORDS]
    assert tab.page.evaluate("texts => texts.map(text => window.textualInversion.withoutWord(text, 'cat'))", texts) == [
        after for _, after in WORDS
    ]
    found = tab.page.evaluate("texts => texts.map(text => window.textualInversion.hasWord(text, 'cat'))", texts)
    assert found == [before != after for before, after in WORDS]
    look = "text => { const begun = performance.now(); let found = 0; for (let at = 0; at < 10000; at++)"
    look += " found += window.textualInversion.hasWord(text, 'word (v' + at + ')'); return [found, performance.now() - begun]; }"
    found, milliseconds = tab.page.evaluate(look, "a picture of a word (v77), at noon, " * 20)
    assert found == 1
    assert milliseconds < 400  # asked at every key, of every card


def test_generate_shows_progress_pictures_and_how_they_were_made(address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    tab = open_tab(address)
    tab.open("txt2img")
    engine.pace = 0.02
    tab.page.wait_for_selector("#ti_generate", state="visible")
    tab.fill("txt2img_seed", "7")
    tab.fill("txt2img_prompt", "a <typo:1.2> in a field")
    tab.page.click("#ti_generate")
    tab.until("/Step \\d+ of 80/.test(document.querySelector('.ti-drawing')?.innerText)")
    tab.until("document.querySelectorAll('#ti_gallery img').length >= 4")
    assert "Seed: 7" in tab.text("#ti_generate_note")
    assert "<typo:1.2> is no name of an embedding" in tab.text("#ti_generate_note")
    kept = sorted((engine.host.folders().outputs / "txt2img").rglob("*.png"))
    assert [path.stem.split("-")[1] for path in kept[-4:]] == ["7", "8", "9", "10"]


def test_a_name_is_text_whatever_it_holds(address: str, open_tab: Callable[..., Any], engine: FakeEngine, tmp_path: Path) -> None:
    nasty = '"><img src=x onerror="window.pwned=1">'.replace("/", "")
    (engine.host.folders().embeddings / f"{nasty}.json").write_text('{"vectors": 1, "step": 1, "size": 128}')
    tab = open_tab(address)
    tab.open("txt2img")
    tab.until("document.querySelectorAll('.ti-card').length === 1")
    assert nasty in tab.text(".ti-card .ti-name")
    tab.page.locator(".ti-card").click()
    assert nasty in prompt(tab)
    tab.open("Train")
    engine.job.start(JobKind.TRAIN, nasty, lambda listener, stop: None, tmp_path)
    tab.until("document.querySelector('.ti-job .ti-word')?.textContent.includes('onerror')")
    assert tab.page.evaluate("window.pwned") is None


def test_another_checkpoint_changes_what_nobody_has_changed(address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    tab = open_tab(address)
    tab.page.get_by_role("button", name="Size and device").click()
    width, height = (tab.page.locator(f"#ti_train_{side} input[type=number]") for side in ("width", "height"))
    width.wait_for(state="visible")
    tab.until("document.querySelector('#ti_train_height input[type=number]').value === '128'")  # gradio sets it once more when it is drawn
    tab.type(height, "256")
    choice = tab.page.locator("#ti_checkpoint input")
    choice.click()
    tab.page.get_by_role("option", name="fake-512").click()
    tab.until("document.querySelector('#ti_train_width input[type=number]').value === '512'")
    assert height.input_value() == "256"
    assert engine.host.checkpoint().name == "fake-512"
    second = open_tab(address)
    second.until("document.querySelector('#ti_checkpoint input').value === 'fake-512'")
    second.page.get_by_role("button", name="Size and device").click()
    second.until("document.querySelector('#ti_train_width input[type=number]')?.value === '512'")
    engine.host.choose_checkpoint("fake-128")  # as a third window would
    second.until("document.querySelector('#ti_checkpoint input').value === 'fake-128'")


def test_dropped_pictures_become_the_data_set(address: str, open_tab: Callable[..., Any], engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "evil.png").write_text("<script>")
    good = [str(engine.host.folders().pictures / name) for name in ("0.png", "1.png", "1.txt")]
    tab = open_tab(address)
    tab.page.get_by_role("button", name="Drop pictures here").click()
    tab.page.locator("#ti_files input[type=file]").set_input_files([*good, str(tmp_path / "evil.png")])
    tab.until("document.querySelector('#ti_strip')?.innerText.includes('2 pictures, 1 with captions')")
    assert Path(tab.value("train_images")).parent == engine.host.folders().outputs / "pictures"
    assert "evil.png" in tab.text("#ti_files_note")


def test_check_says_what_would_be_trained(address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    tab = open_tab(address)
    tab.page.click("#ti_train_check")
    tab.until("document.querySelector('#ti_train_note')?.innerText.includes('Every prompt holds the name')", timeout=60_000)
    assert "Time and memory are not estimated" in tab.text("#ti_train_note")
    assert not engine.job.running


@pytest.mark.parametrize("width", [420, 1400])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_stands_out_of_the_page(address: str, open_tab: Callable[..., Any], engine: FakeEngine, width: int, theme: str) -> None:
    engine.create(NewEmbedding("a-name-that-is-rather-longer-than-its-card-is-wide"))
    tab = open_tab(f"{address}/?__theme={theme}", width=width)
    tab.page.click("#ti_train_button")
    tab.until(f"{PHASE} === 'finished'")
    for name in ("Create", "Preprocess", "Train", "txt2img"):
        tab.open(name)
        tab.page.wait_for_timeout(150)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert tab.page.evaluate("document.body.classList.contains('dark')") is (theme == "dark")


def test_a_lost_connection_is_said_and_mended(address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    engine.pace = 0.05
    tab = open_tab(address)
    tab.page.click("#ti_train_button")
    tab.until(f"{PHASE} === 'working'")
    tab.page.route("**/textual-inversion/state**", lambda route: route.abort())
    tab.until("document.querySelector('.ti-notice').innerText.includes('connection is lost')")
    tab.page.unroute("**/textual-inversion/state**")
    tab.until("document.querySelector('.ti-notice').innerText === ''")
    assert engine.job.running
