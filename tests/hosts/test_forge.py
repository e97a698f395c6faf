"""A real Forge with this extension: what it shares with reForge, and what is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts import forge_rows
from tests.hosts.a1111_browser import TrainTab, set_options
from tests.hosts.conftest import WebUI

pytestmark = [pytest.mark.hosts, pytest.mark.browser]


class ForgeTab(TrainTab):
    """A tab of the page's own."""

    there = "#ti_tabs"


class Forge(forge_rows.Rows):
    tab_class = ForgeTab
    hires = {"hr_additional_modules": ["Use same choices"], "hr_cfg": 4}  # noqa: RUF012
    once = dict.fromkeys(
        ("ui_settings", "before_ui", "before_token_counter", "model_loaded", "app_started", "script_unloaded", "ui_tabs"), 1
    )


@pytest.fixture(scope="module")
def webui(forge: WebUI) -> WebUI:
    return forge


class TestStart(Forge, forge_rows.Start):
    pass


class TestPage(Forge, forge_rows.Page):
    pass


class TestQueue(Forge, forge_rows.Queue):
    pass


class TestPrompts(Forge, forge_rows.Prompts):
    pass


class TestFiles(Forge, forge_rows.Files):
    def choose_vae(self, webui: WebUI, file: Path | None) -> None:
        set_options(webui, forge_additional_modules=[str(file)] if file else [])


class TestTrouble(Forge, forge_rows.Trouble):
    pass


class TestNumbers(Forge, forge_rows.Numbers):
    pass


class TestReload(Forge, forge_rows.Reload):
    pass
