"""What a real A1111 has of this extension: exactly one of everything, also after its page was reloaded; nothing once it is off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.hosts.a1111_browser import (
    API,
    PICTURES,
    TrainTab,
    create,
    open_page,
    picture,
    running_a1111,
    set_options,
    state,
    train,
    until_over,
    until_step,
    wait_for,
)
from tests.hosts.conftest import WebUI

pytestmark = [pytest.mark.hosts, pytest.mark.browser]

ONCE = {
    "callbacks_ui_settings": 1,
    "callbacks_before_ui": 1,
    "callbacks_before_token_counter": 1,
    "callbacks_model_loaded": 1,
    "callbacks_app_started": 1,
    "callbacks_script_unloaded": 1,
    "callbacks_ui_train_tabs": 1,
}


#: Name of a section of the settings page -> the heading that it is under; null until the host has put the headings in.
HEADINGS = """() => {
    const lines = [...document.querySelectorAll("#settings > div > *")], found = {};
    let heading = "";
    for (const line of lines) {
        if (line.matches(".settings-category")) heading = line.textContent.trim();
        else found[line.textContent.trim()] = heading;
    }
    return heading ? found : null;
}"""


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    with running_a1111(tmp_path_factory.mktemp("a1111-life")) as webui:
        yield webui


def check_one_of_everything(webui: WebUI, tab: TrainTab) -> None:
    has = webui.get("/test/inside")
    ours = {kind if kind.startswith("callbacks_") else f"callbacks_{kind}": count for kind, count in has["callbacks"].items() if count}
    assert ours == ONCE
    assert has["scripts"] == 1
    assert all(method.startswith("textual_inversion.hosts.") for method in has["methods"]), has["methods"]
    assert [name for name, _ in has["pages"]].count("textual inversion") == 1
    assert dict(has["pages"])["textual inversion"] == "TextualInversionCards"
    assert tab.page.locator("#train_tabs > .tab-nav button", has_text="Textual Inversion").count() == 1
    assert tab.page.locator("#txt2img_extra_tabs > .tab-nav button", has_text="Textual Inversion").count() == 1
    assert tab.page.locator("button#ti_train_button").count() == 1


def reload_host(webui: WebUI, tab: TrainTab) -> None:
    """As Settings, Reload UI does."""
    before = webui.log.read_text(encoding="utf-8").count("Startup time:")
    tab.page.goto("about:blank")
    webui.get("/test/reload")
    wait_for(lambda: webui.log.read_text(encoding="utf-8").count("Startup time:") > before, 120, "the reload")


def reload_page(webui: WebUI, tab: TrainTab) -> None:
    reload_host(webui, tab)
    tab.open()


def begin(webui: WebUI, name: str) -> str:
    create(webui, name)
    body = {"name": name, "images": str(PICTURES), "width": 128, "height": 128, "steps": 100_000}
    job = str(webui.post(f"{API}/train", **body)["job"])
    until_step(webui, 3)
    return job


def wait_phase(tab: TrainTab, phase: str) -> None:
    wait_for(lambda: tab.page.evaluate("document.querySelector('.ti-job')?.dataset.phase") == phase, 20, f"{phase} on the page")


def test_its_settings_are_a_section_under_training(webui: WebUI, chromium: str) -> None:
    with open_page(chromium, webui.url) as tab:
        tab.open()
        tab.go("Settings")
        heading: dict[str, str] = wait_for(lambda: tab.page.evaluate(HEADINGS), 20, "the headings")
    assert (heading["Textual Inversion"], heading["Training"]) == ("Training", "Training")


def test_a_page_that_is_opened_again_finds_the_running_job(webui: WebUI, chromium: str) -> None:
    job = begin(webui, "opened-again")
    with open_page(chromium, webui.url) as tab:
        for _ in range(2):
            tab.open()
            wait_phase(tab, "working")
            wait_for(lambda: tab.value("ti_train_name") == "opened-again", 20)
            assert state(webui)["job"] == job
        tab.press("ti_train_stop")
        wait_phase(tab, "interrupted")
    assert until_over(webui)["step"] > 0


def test_a_reload_leaves_one_of_everything_and_finds_the_job(webui: WebUI, chromium: str) -> None:
    with open_page(chromium, webui.url) as tab:
        tab.open()
        check_one_of_everything(webui, tab)
        for number in range(2):
            job = begin(webui, f"reloaded-{number}")
            reload_page(webui, tab)  # the host interrupts what runs when its page is reloaded
            check_one_of_everything(webui, tab)
            shown = until_over(webui)
            assert (shown["job"], shown["phase"], shown["failed"]) == (job, "interrupted", False)
            wait_phase(tab, "interrupted")
            assert f"up to step {shown['step']} is kept" in tab.text(".ti-notice")
            assert webui.get("/sdapi/v1/embeddings")["loaded"][f"reloaded-{number}"]["step"] == shown["step"]
            assert train(webui, f"reloaded-{number}", steps=shown["step"] + 2)["phase"] == "finished"
        assert picture(webui, "a picture of reloaded-1")[0]
        assert not re.search(r'File ".*textual_inversion', webui.log.read_text(encoding="utf-8"))  # no traceback of ours


def test_switched_off_it_leaves_the_host_as_it_was(webui: WebUI, chromium: str) -> None:
    create(webui, "without")
    with open_page(chromium, webui.url) as tab:
        tab.open()
        set_options(webui, disabled_extensions=["textual-inversion"])
        try:
            reload_off(webui, tab)
            has: dict[str, Any] = webui.get("/test/inside")
            assert not any(has["callbacks"].values())
            assert has["scripts"] == 0
            assert all(method.startswith("modules.textual_inversion.textual_inversion.EmbeddingDatabase.") for method in has["methods"])
            assert dict(has["pages"])["textual inversion"] == "ExtraNetworksPageTextualInversion"
            assert webui.ask("GET", "/textual-inversion/state")[0] == 404
            assert webui.ask("GET", f"{API}/state")[0] == 404
            webui.post("/sdapi/v1/refresh-embeddings")
            assert "without" in webui.get("/sdapi/v1/embeddings")["loaded"]
            assert "TI hashes" in picture(webui, "a picture of without")[1]
        finally:
            set_options(webui, disabled_extensions=[])
        reload_page(webui, tab)
        check_one_of_everything(webui, tab)
        assert tab.problems == []


def reload_off(webui: WebUI, tab: TrainTab) -> None:
    reload_host(webui, tab)
    tab.page.goto(webui.url)
    tab.page.wait_for_selector("#tabs", timeout=60_000)
    tab.page.wait_for_timeout(1500)
    assert tab.page.locator("#train_tabs > .tab-nav button", has_text="Textual Inversion").count() == 0
    assert tab.page.locator("#ti_train_button").count() == 0
