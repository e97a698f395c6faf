"""A real A1111 with a models folder of its own, and its Train tab as a person sees it in Chromium."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.hosts.conftest import ROOT, WebUI, start_a1111, stop

OVER = ("finished", "interrupted", "failed", "idle")
PICTURES = ROOT / "textual_inversion" / "assets" / "demo" / "pictures"
TINY = ROOT / "textual_inversion" / "assets" / "tiny"
API = "/textual-inversion/v1"


@contextmanager
def running_a1111(data: Path, *arguments: str, checkpoint: str = "tiny") -> Iterator[WebUI]:
    """A1111 over `data` with one of the tiny checkpoints, as it is shipped, in `data / "models"`."""
    if not os.environ.get("A1111_DIR"):
        pytest.skip("A1111_DIR does not name the folder of an A1111")
    checkpoints = data / "models" / "Stable-diffusion"
    for folder in (checkpoints, data / "models" / "VAE", data / "embeddings"):
        folder.mkdir(parents=True, exist_ok=True)
    for file in TINY.glob(f"{checkpoint}.*"):
        if not (checkpoints / file.name).exists():
            shutil.copy(file, checkpoints)
    process, webui = start_a1111(data, "--models-dir", str(data / "models"), *arguments)
    try:
        yield webui
    finally:
        stop(process)


def wait_for(condition: Callable[[], Any], seconds: float = 120, what: str = "") -> Any:
    """What `condition` gives as soon as that is true of it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s: {what or condition}")
        time.sleep(0.1)
    return found


def state(webui: WebUI) -> dict[str, Any]:
    """What the page draws from."""
    return dict(webui.get("/textual-inversion/state"))


def until_over(webui: WebUI, seconds: float = 240) -> dict[str, Any]:
    """The state of the job once it has ended."""
    return dict(wait_for(lambda: (shown := state(webui))["phase"] in OVER and shown, seconds, "the job's end"))


def until_step(webui: WebUI, step: int, seconds: float = 120) -> dict[str, Any]:
    """The state of the job once it has come to `step`; fails where it has ended before."""

    def reached() -> dict[str, Any] | None:
        shown = state(webui)
        assert shown["phase"] not in OVER or shown["step"] >= step, shown
        return shown if shown["step"] >= step else None

    return dict(wait_for(reached, seconds, f"step {step}"))


def set_options(webui: WebUI, **options: Any) -> None:
    """Of the host's Settings."""
    assert webui.ask("POST", "/sdapi/v1/options", options)[0] == 200


def picture(webui: WebUI, prompt: str, **more: Any) -> tuple[str, str]:
    """Digest of the pixels of a small picture as the host draws it, and its infotext."""
    body = {"prompt": prompt, "steps": 6, "sampler_name": "Euler", "width": 128, "height": 128, "seed": 1, "cfg_scale": 3.0}
    answer = webui.post("/sdapi/v1/txt2img", **{**body, **more})
    assert "images" in answer, answer
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as drawn:
        pixels = hashlib.sha256(drawn.convert("RGB").tobytes()).hexdigest()
    return pixels, json.loads(answer["info"])["infotexts"][0]


def create(webui: WebUI, name: str, **values: Any) -> Path:
    """A new embedding through the API; its file."""
    status, answer = webui.ask("POST", f"{API}/create", {"name": name, "initializer_text": "red shape", **values})
    assert status == 200, answer
    return webui.data / "embeddings" / answer["file"]


def train(webui: WebUI, name: str, **values: Any) -> dict[str, Any]:
    """Train through the API to the end; the job's state."""
    body = {"name": name, "images": str(PICTURES), "width": 128, "height": 128, "batch_size": 2, "steps": 10, **values}
    status, answer = webui.ask("POST", f"{API}/train", body)
    assert status == 200, answer
    return until_over(webui)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """`folder` is a disk of 64 KiB inside; skips where none can be mounted."""
    folder.mkdir()
    mounted = (
        shutil.which("mount")
        and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False).returncode == 0
    )
    if not mounted:
        folder.rmdir()
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def fill_disk(folder: Path) -> None:
    """Leave no room."""
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(1024)):
                pass
        except OSError:
            return


class TrainTab:
    """The host's Train tab in a browser."""

    there = "#ti_host_tab"

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on(
            "console",
            lambda said: self.problems.append(said.text) if said.type == "error" and "Failed to load resource" not in said.text else None,
        )

    def open(self) -> TrainTab:
        self.page.goto(self.url)
        self.page.wait_for_selector("#tabs", timeout=60_000)
        self.page.wait_for_function(f"document.querySelector('{self.there}') !== null && typeof gradio_config !== 'undefined'")
        self.page.wait_for_timeout(1500)
        self.go("Train")
        return self

    def go(self, name: str) -> None:
        """To a tab of the host's page."""
        self.page.locator("#tabs > .tab-nav button", has_text=name).first.click()
        self.page.wait_for_timeout(400)

    def tab(self, name: str) -> None:
        """To one of our three tabs."""
        self.page.locator("#ti_tabs > .tab-nav button", has_text=name).first.click()
        self.page.wait_for_timeout(300)

    def unfold(self, *titles: str) -> None:
        for title in titles:
            self.page.locator("#ti_tab_train .label-wrap", has_text=title).first.click()
            self.page.wait_for_timeout(300)

    def fill(self, ident: str, value: Any) -> None:
        field = self.page.locator(f"#{ident} input:visible, #{ident} textarea:visible").first
        field.fill(str(value))
        field.blur()
        self.page.wait_for_timeout(250)

    def value(self, ident: str) -> str:
        return str(self.page.locator(f"#{ident} input, #{ident} textarea").first.input_value())

    def check(self, ident: str, on: bool = True) -> None:
        self.page.locator(f"#{ident} input[type=checkbox]").first.set_checked(on)
        self.page.wait_for_timeout(200)

    def press(self, ident: str) -> None:
        self.page.click(f"button#{ident}")

    def text(self, selector: str) -> str:
        found = self.page.locator(selector)
        return " ".join(found.all_inner_texts()).strip()

    def wait_text(self, selector: str, part: str, seconds: float = 60) -> str:
        return str(wait_for(lambda: part in (shown := self.text(selector)) and shown, seconds, f"{part!r} in {selector}"))


@contextmanager
def open_page(chromium: str, url: str, width: int = 1500, height: int = 1300, tab_class: type[TrainTab] = TrainTab) -> Iterator[TrainTab]:
    """The page in a Chromium of its own."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            yield tab_class(browser.new_page(viewport={"width": width, "height": height}), url)
        finally:
            browser.close()
