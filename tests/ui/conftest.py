"""The standalone WebUI served on a free port of this machine, and a real Chromium to look at it with."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from textual_inversion.hosts.fake import FakeEngine, FakeHost


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    """A fake engine whose steps take no time to speak of."""
    return FakeEngine(FakeHost(tmp_path / "host"), pace=0.0005)


def emptied(engine: FakeEngine, pace: float) -> None:
    """Bring an engine that several tests share back to its start: no embedding, no old job, the usual checkpoint."""
    engine.job.interrupt()
    engine.job.wait(20)
    engine.job._reset(None, "", None)
    engine.pace, engine.host.level = pace, "good"
    engine.host.choose_checkpoint("fake-128")
    for path in engine.host.folders().embeddings.iterdir():
        path.unlink()


@contextmanager
def served(engine: Any) -> Iterator[str]:
    """The WebUI over `engine`, whose host has a list of checkpoints, while the block runs; gives its address."""
    from textual_inversion.hosts.standalone.app import Server, build_app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = build_app(engine, engine.host, engine.host if isinstance(engine.host, FakeHost) else None)
    server = Server(app, engine.job, "127.0.0.1", port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline and thread.is_alive():
        time.sleep(0.05)
    assert server.started, "the server did not start"
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="session")
def serve() -> Callable[[Any], Any]:
    """`with serve(engine) as address:`."""
    return served


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A Chromium; missing, it is a reason to skip at home and a failure where CI promises one."""
    try:
        path = request.getfixturevalue("chromium")
        playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    except pytest.skip.Exception as reason:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs a browser: {reason}")
        raise
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


PATIENCE = 60_000  # ms; a machine that is busy with other things is slow, not wrong
SETTLING = 150  # ms; ten times what gradio was seen to take


class Tab:
    """One page in the browser, with what its console complained about."""

    def __init__(self, browser: Any, address: str, width: int = 1400, height: int = 900) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.set_default_timeout(PATIENCE)
        # gradio draws buttons before it listens to them; the page's own load handler is the first sign that it does
        with self.page.expect_response(lambda response: "/queue/join" in response.url):
            self.page.goto(address, wait_until="domcontentloaded")
        self.page.wait_for_selector("#ti_pages [role=tab]")

    def open(self, name: str) -> None:
        """Open the tab `name`; of two with the same name, the inner one."""
        self.page.get_by_role("tab", name=name, exact=True).last.click()

    def fill(self, setting: str, value: str) -> None:
        """Type into the field with the id `ti_<setting>` and leave it."""
        self.type(self.page.locator(f"#ti_{setting}").locator("input, textarea").first, value)

    def type(self, field: Any, value: str) -> None:
        """Type into a field and leave it.

        gradio 6 draws what is in a tab or under a heading when that is first opened, and sets the fields to their first values
        once more some milliseconds later; what was typed in between is gone. No hand is that quick, but this is: so it looks
        again, and types again.
        """
        for _ in range(5):
            field.fill(value)
            field.blur()
            typed = field.input_value()
            self.page.wait_for_timeout(SETTLING)
            if field.input_value() == typed:
                return

    def value(self, setting: str) -> str:
        """What the field with the id `ti_<setting>` holds."""
        return str(self.page.locator(f"#ti_{setting}").locator("input, textarea").first.input_value())

    def text(self, selector: str) -> str:
        """The text of the first element that is found."""
        return str(self.page.locator(selector).first.inner_text())

    def until(self, expression: str, timeout: float = PATIENCE) -> Any:
        """Wait for a JavaScript expression to become true, and return its value."""
        return self.page.wait_for_function(expression, timeout=timeout).json_value()


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """`open_tab(address, width=1400, height=900)`; every page is closed at the end, and none may have thrown an error."""
    tabs: list[Tab] = []

    def opened(address: str, **size: int) -> Tab:
        tabs.append(Tab(browser, address, **size))
        return tabs[-1]

    yield opened
    for tab in tabs:
        tab.page.close()
    assert [complaint for tab in tabs for complaint in tab.complaints] == []
