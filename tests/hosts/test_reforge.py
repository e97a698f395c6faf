"""A real reForge with this extension: what it shares with Forge, and what is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts import forge_rows
from tests.hosts.a1111_browser import TrainTab, picture, set_options, wait_for
from tests.hosts.conftest import WebUI

pytestmark = [pytest.mark.hosts, pytest.mark.browser]


class ReForge(forge_rows.Rows):
    tab_class = TrainTab
    hires = {"hr_cfg": 4}  # noqa: RUF012
    once = dict.fromkeys(
        ("ui_settings", "before_ui", "before_token_counter", "model_loaded", "app_started", "script_unloaded", "ui_train_tabs"), 1
    )


@pytest.fixture(scope="module")
def webui(reforge: WebUI) -> WebUI:
    return reforge


class TestStart(ReForge, forge_rows.Start):
    pass


class TestPage(ReForge, forge_rows.Page):
    pass


class TestQueue(ReForge, forge_rows.Queue):
    pass


class TestPrompts(ReForge, forge_rows.Prompts):
    pass


class TestFiles(ReForge, forge_rows.Files):
    def choose_vae(self, webui: WebUI, file: Path | None) -> None:
        webui.post("/sdapi/v1/refresh-vae")
        set_options(webui, sd_vae=file.name if file else "None")
        picture(webui, "a red circle", **forge_rows.SMALL)
        wait_for(lambda: webui.get("/test/inside")["vae"] == (str(file) if file else None), 30, "the VAE")


class TestTrouble(ReForge, forge_rows.Trouble):
    pass


class TestNumbers(ReForge, forge_rows.Numbers):
    pass


class TestReload(ReForge, forge_rows.Reload):
    pass
