"""Training in a real A1111 that saves memory: the checkpoint's file is read, so how the host keeps its own model does not matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts.a1111_browser import create, picture, running_a1111, set_options, train
from tests.hosts.conftest import WebUI

pytestmark = pytest.mark.hosts


def check_trains_and_draws(webui: WebUI, name: str) -> None:
    create(webui, name)
    before, _ = picture(webui, f"a picture of {name}")
    shown = train(webui, name, steps=12, learning_rate="0.05", preview_every=12, preview_steps=2)
    assert (shown["phase"], shown["step"], len(shown["previews"])) == ("finished", 12, 2), shown
    after, _ = picture(webui, f"a picture of {name}")
    assert after != before


@pytest.mark.parametrize("argument", ["--medvram", "--lowvram"])
def test_with_models_moved_in_parts(tmp_path: Path, argument: str) -> None:
    with running_a1111(tmp_path, argument) as webui:
        assert webui.get("/test/inside")["lowvram"]
        check_trains_and_draws(webui, "in-parts")


def test_with_weights_stored_in_eight_bits(tmp_path: Path) -> None:
    with running_a1111(tmp_path) as webui:
        set_options(webui, fp8_storage="Enable")
        check_trains_and_draws(webui, "in-fp8")
