"""The folded part of the Train tab that renames and deletes the chosen embedding, connected to its actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from textual_inversion.app.actions import Outcome
from textual_inversion.app.shelf import Shelf
from textual_inversion.ui import compat, render

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine

TITLE = "Rename or delete"


def draw(parts: dict[str, Any]) -> None:
    """Put the field and the buttons on the page, into `parts`."""
    with gr.Accordion(TITLE, open=False, elem_id="ti_shelf"):
        parts["new_name"] = gr.Textbox(label="New name", lines=1, max_lines=1, elem_id="ti_train_new_name")
        with gr.Row(elem_classes=["ti-buttons"]):
            parts["rename"] = gr.Button("Rename", elem_id="ti_rename", elem_classes=["ti-stop"])
            parts["delete"] = gr.Button("Delete", elem_id="ti_delete", elem_classes=["ti-stop"])
            parts["undo_shelf"] = gr.Button("Undo", elem_id="ti_undo_shelf", elem_classes=["ti-stop"])
        parts["shelf_note"] = gr.HTML("", elem_id="ti_shelf_note")
    for name in ("new_name", "rename", "delete", "undo_shelf"):
        compat.not_saved(parts[name])


def wire(parts: dict[str, Any], engine: Engine, name: Any, choose: Callable[[str], Any]) -> None:
    """Connect the buttons.

    Args:
        name: the component with the chosen embedding.
        choose: gives the update of `name` that lists the embeddings anew and chooses one; empty = another than the present one.
    """
    shelf = Shelf(engine)

    def said(outcome: Outcome) -> Any:
        note = render.note(outcome.text, outcome.kind, "ti_train_new_name" if outcome.setting else "")
        return (note, compat.update(), compat.update()) if outcome.failed else (note, choose(outcome.name), compat.update(value=""))

    def rename(chosen: Any, new_name: Any) -> Any:
        return said(shelf.rename(str(chosen or ""), str(new_name or "")))

    def delete(chosen: Any) -> Any:
        return said(shelf.delete(str(chosen or "")))

    outputs = [parts["shelf_note"], name, parts["new_name"]]
    compat.on(parts["rename"].click, rename, [name, parts["new_name"]], outputs)
    compat.on(parts["delete"].click, delete, [name], outputs)
    compat.on(parts["undo_shelf"].click, lambda: said(shelf.undo()), [], outputs)
