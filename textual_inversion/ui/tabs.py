"""The Train page as a tab inside another program's tabs. Knows no WebUI but through the host that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.context import Context

from textual_inversion.ui.page import TrainPage, build_train_page

if TYPE_CHECKING:
    from textual_inversion.hosts.port import Host

TITLE = "Textual Inversion"
TAB_ID = "textual_inversion"


def draw_train_tab(host: Host, drawing_settings: Sequence[Any] = (), *, first: bool = False) -> TrainPage:
    """Add a tab with the Train page to the tabs that are open.

    Args:
        drawing_settings: components of txt2img that previews may take their settings from, in the order of
            `page.DRAWING_SETTINGS`; none where there is no such page.
        first: open this tab when the page opens; it stays behind those that are there.
    """
    around = Context.block
    with gr.Tab(TITLE, id=TAB_ID, elem_id="ti_host_tab"):
        page = build_train_page(host, drawing_settings, list_names=False)
    if first and isinstance(around, gr.Tabs):
        around.selected = TAB_ID
    return page


def train_blocks(host: Host, drawing_settings: Sequence[Any] = ()) -> Any:
    """The Train page as Blocks of its own, for programs that take whole tabs; `drawing_settings` as in `draw_train_tab`."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        build_train_page(host, drawing_settings, list_names=False)
    return blocks
