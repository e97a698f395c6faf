"""The Textual Inversion cards: search, refresh, and where the page's script draws them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from textual_inversion.ui import render

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine

_BAR = """<div class="ti-cardbar">
<h3>Textual Inversion</h3>
<input type="search" class="ti-search" placeholder="Search" aria-label="Search the cards">
<label class="ti-option" title="Insert the word as &lt;name:1&gt;, whose number is its strength">
<input type="checkbox" class="ti-strength"> with strength</label>
<button type="button" class="ti-refresh" title="Look for files again" aria-label="Refresh the cards">↻</button>
</div>"""


def build_cards(engine: Engine) -> Any:
    """Draw the cards inside the open gradio context; the script reads them again when something changes.

    Where there are none now there may be some by the time that the page is opened: nothing is said before the script has asked.
    """
    cards = engine.cards()
    shelf = f'<div class="ti-shelf">{render.cards(cards) if cards else ""}</div>'
    return gr.HTML(f'<section class="ti-library">{_BAR}{shelf}</section>', elem_id="ti_cards")
