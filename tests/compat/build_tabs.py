"""Builds the tabs over the fake host under whatever gradio is installed, asks the page for its first state, and prints one line.

Run it as a program: `python tests/compat/build_tabs.py`. It needs no torch.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    import gradio as gr
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from textual_inversion.hosts.fake import FakeEngine, FakeHost
    from textual_inversion.ui.page import build_train_page
    from textual_inversion.ui.routes import add_routes

    had_torch = "torch" in sys.modules
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = FakeEngine(FakeHost(Path(folder)))
        with gr.Blocks(analytics_enabled=False) as blocks:
            page = build_train_page(engine)
        config = blocks.get_config_file()
        app = Starlette()
        add_routes(app, engine)
        state = TestClient(app, base_url="http://localhost").get("/textual-inversion/state").json()
    unknown = [str(item.message) for item in caught if "unused kwarg" in str(item.message)]  # gradio 3 only warns, later ones raise
    assert not unknown, unknown
    assert state["phase"] == "idle", state
    assert had_torch or "torch" not in sys.modules, "building the tabs imported torch"
    components, actions = len(config["components"]), len(config["dependencies"])
    fields = len(page.create) + len(page.preprocess) + len(page.train)
    without = "" if importlib.util.find_spec("torch") else ", without torch"
    print(f"gradio {gr.__version__}: {fields} settings, {components} components, {actions} actions{without}")


if __name__ == "__main__":
    main()
