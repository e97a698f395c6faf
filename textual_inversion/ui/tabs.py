"""The Train page as a tab inside another program's tabs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.context import Context

from textual_inversion.ui import render
from textual_inversion.ui.page import TrainPage, build_train_page

if TYPE_CHECKING:
    from textual_inversion.app.checking import CheckOffer
    from textual_inversion.app.engine import Engine

_log = logging.getLogger(__name__)
TITLE = "Textual Inversion"
TAB_ID = "textual_inversion"


def draw_train_tab(
    engine: Engine, offer: CheckOffer | None = None, drawing_settings: Sequence[Any] = (), *, first: bool = False
) -> TrainPage:
    """Add a tab with the Train page to the tabs that are open.

    Args:
        offer: whether to offer a check of the embedding files; None = never.
        drawing_settings: components of txt2img that previews may take their settings from, in the order of
            `actions.DRAWING_SETTINGS`; none where there is no such page.
        first: open this tab when the page opens; it stays behind those that are there.
    """
    around = Context.block
    with gr.Tab(TITLE, id=TAB_ID, elem_id="ti_host_tab"):
        page = build_train_page(engine, offer, drawing_settings, list_names=False)
    if first and isinstance(around, gr.Tabs):
        around.selected = TAB_ID
    return page


class TrainBlocks(gr.Blocks):
    """The Train page for a program that takes whole tabs as Blocks and renders them in its own.

    It is drawn when it is rendered, right into that program's page: gradio makes a web application for each Blocks that is drawn by
    itself, which nobody would ask anything.

    Args:
        offer, drawing_settings: as in `draw_train_tab`.
    """

    def __init__(self, engine: Engine, offer: CheckOffer | None = None, drawing_settings: Sequence[Any] = ()) -> None:
        super().__init__(analytics_enabled=False)
        self._page = (engine, offer, drawing_settings)

    def render(self) -> TrainBlocks:
        """Draw the page inside the gradio context that is open."""
        with gr.Column() as column:
            try:
                build_train_page(*self._page, list_names=False)
            except Exception:  # noqa: BLE001  whatever it is, it must not cost the program its whole page
                _log.exception("The Train tab could not be drawn")
                gr.HTML(render.note("The Train tab could not be drawn; the console says why.", "error"))
        self.children = [column]
        return self
