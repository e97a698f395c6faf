"""The field for addresses of embeddings, under the form of a new word on the Create tab."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from textual_inversion.ui import compat, render

if TYPE_CHECKING:
    from textual_inversion.app.installing import Installing

Parts = dict[str, Any]


def draw(parts: Parts) -> None:
    """Draw the field for addresses under the form of a new word."""
    with gr.Accordion("Install from an address instead", open=False, elem_id="ti_install"):
        parts["install_address"] = gr.Textbox(
            "",
            lines=2,
            label="Addresses, one on each line",
            placeholder="https://civitai.com/models/… or https://huggingface.co/owner/name",
            info="The file is read as data, compared with its site's hash, and never takes the place of another.",
            elem_id="ti_install_address",
        )
        with gr.Row(elem_classes=["ti-buttons"]):
            parts["install_button"] = gr.Button("Install", variant="primary", elem_id="ti_install_button")
            parts["install_stop"] = gr.Button("Interrupt", elem_id="ti_install_stop", elem_classes=["ti-stop"])
        parts["install_note"] = gr.HTML("", elem_id="ti_install_note")
    for name in ("install_address", "install_button", "install_stop"):
        compat.not_saved(parts[name])


def wire(parts: Parts, installing: Installing) -> None:
    """Connect the field with what a click on its buttons does."""
    note, field = parts["install_note"], parts["install_address"]
    compat.on(parts["install_button"].click, lambda text: render.outcome(installing.begin(text)), [field], [note])
    compat.on(parts["install_stop"].click, lambda: render.outcome(installing.interrupt()), [], [note], queue=False)
