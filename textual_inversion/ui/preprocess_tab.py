"""The Preprocess tab: its settings and the pictures under review, connected to the actions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from textual_inversion.app.actions import Outcome
from textual_inversion.app.preprocessing import Preprocessing, values_of
from textual_inversion.app.review import client_of, sent_for
from textual_inversion.settings.schema import folder_text
from textual_inversion.ui import compat, form, gallery, pictures, render

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine

Parts = dict[str, Any]


def draw(values: Parts, parts: Parts) -> Parts:
    """Put the tab's settings and buttons on the page; returns key -> component, the rest goes into `parts`."""
    gr.HTML(
        render.intro(
            "From photos to a training set",
            "Look shows what becomes of each picture before anything is written: crops, captions, what is blurred or there twice.",
        )
    )
    sections = form.preprocess_sections()
    drawn = form.draw(sections.pop("source"), values, "preprocess")
    parts["source_strip"] = gr.HTML("", elem_id="ti_source_strip")
    with gr.Accordion("Drop pictures here instead", open=False, elem_id="ti_source_drop"):
        parts["source_files"] = gr.File(
            label="Pictures, with .txt captions if you have them", file_count="multiple", elem_id="ti_source_files"
        )
        parts["source_files_note"] = gr.HTML("", elem_id="ti_source_files_note")
    drawn.update(form.draw(sections.pop("result"), values, "preprocess"))
    for title, rows in sections.items():
        with gr.Accordion(title, open=False, elem_classes=["ti-group"]):
            drawn.update(form.draw(rows, values, "preprocess"))
    with gr.Row(elem_classes=["ti-buttons"]):
        parts["look_button"] = gr.Button("Look", elem_id="ti_look_button", elem_classes=["ti-stop"])
        parts["preprocess_button"] = gr.Button("Preprocess", variant="primary", elem_id="ti_preprocess_button")
        parts["preprocess_stop"] = gr.Button("Interrupt", elem_id="ti_preprocess_stop", elem_classes=["ti-stop"])
    parts["preprocess_note"] = gr.HTML("", elem_id="ti_preprocess_note")
    parts["mixing_asked"], parts["suggested_destination"] = gr.State(""), gr.State("")
    return drawn


def draw_gallery(parts: Parts) -> None:
    """Put the pictures under review at the bottom of the page, because they need its whole width."""
    with gr.Column(elem_id="ti_lookout", elem_classes=["ti-lookout"]):
        parts["look_head"] = gr.HTML("", elem_id="ti_look_head")
        parts["look_tiles"] = gr.HTML("", elem_id="ti_look_tiles")
    # The page's script writes to and clicks these. A class hides them: gradio 5 leaves components with visible=False out of the page.
    parts["look_sent"] = gr.Textbox("", elem_id="ti_look_sent", elem_classes=["ti-hidden"], show_label=False)
    parts["look_take"] = gr.Button("Take", elem_id="ti_look_take", elem_classes=["ti-hidden"])
    parts["look_taken"] = gr.HTML("", elem_id="ti_look_taken", elem_classes=["ti-hidden"])
    for name in ("look_button", "look_sent", "look_take"):
        compat.not_saved(parts[name])


def wire(settings: Parts, parts: Parts, engine: Engine, images: Any, interrupt: Callable[[], Outcome]) -> None:
    """Connect the tab; `images` is the Train tab's folder field, which can be set to the destination."""
    actions, keys = Preprocessing(engine), list(settings)
    shown = [parts["look_head"], parts["look_tiles"], parts["look_taken"]]

    def look(*values: Any) -> str:
        return render.outcome(actions.look(dict(zip(keys, values, strict=True))), "preprocess")

    def write(asked: Any, sent: Any, *values: Any) -> Any:
        outcome = actions.write(dict(zip(keys, values)), sent, str(asked or ""))
        if outcome.kind == "ask":
            return render.question(outcome, "Press “Preprocess” again to do so.", "preprocess"), compat.update(), outcome.text
        note = render.outcome(outcome, "preprocess", form.group_of(outcome.setting, preprocess=True))
        return note, compat.update(value=outcome.name) if outcome.name else compat.update(), ""

    def take(sent: Any) -> Any:
        """Carry out the script's commands. The same pictures are not redrawn, because the user may be typing in them."""
        others_are_shown = actions.review.take(sent)
        return _shown(actions, sent, tiles=others_are_shown)

    def refresh(sent: Any) -> Any:
        """As `take`, for a new page or after a job. A new page has sent no command yet; its form gets the settings of the review."""
        review = actions.review
        others_are_shown = review.take(sent) or sent_for(sent) != review.id
        config = None if sent_for(sent) else review.config
        values = values_of(config) if config else {}
        updates = [compat.update(value=values[key]) if key in values else compat.update() for key in keys]
        return *_shown(actions, sent, tiles=others_are_shown), *updates

    def dropped(files: Any) -> Any:
        return pictures.drop(files, engine.host.folders().outputs / "pictures", "source directory")

    values = list(settings.values())
    compat.on(parts["look_button"].click, look, values, [parts["preprocess_note"]])
    compat.on(
        parts["preprocess_button"].click,
        write,
        [parts["mixing_asked"], parts["look_sent"], *values],
        [parts["preprocess_note"], images, parts["mixing_asked"]],
    )
    compat.on(parts["preprocess_stop"].click, lambda: render.outcome(interrupt()), [], [parts["preprocess_note"]], queue=False)
    compat.on(parts["look_take"].click, take, [parts["look_sent"]], shown)
    compat.on(parts["refresh"].click, refresh, [parts["look_sent"]], [*shown, *values])
    compat.on(parts["source_files"].change, dropped, [parts["source_files"]], [parts["source_files_note"], settings["source"]])
    _wire_source(settings, parts, actions)


def _wire_source(settings: Parts, parts: Parts, actions: Preprocessing) -> None:
    """Connect the field of the source."""

    def source_chosen(source: Any, destination: Any, suggested: Any) -> Any:
        """The strip of pictures, and a destination for this source in place of one that was suggested for another."""
        folder = folder_text(source)
        strip = pictures.pictures_in(folder).html() if folder else ""
        if not folder or folder_text(destination) not in (str(actions.parent), str(suggested)):
            return strip, compat.update(), suggested
        place = str(actions.destination_for(Path(folder).expanduser()))
        return strip, compat.update(value=place), place

    source, destination, suggested = settings["source"], settings["destination"], parts["suggested_destination"]
    compat.on(source.change, source_chosen, [source, destination, suggested], [parts["source_strip"], destination, suggested])


def _shown(actions: Preprocessing, sent: Any, *, tiles: bool) -> Any:
    review = actions.review
    return gallery.head(review), gallery.tiles(review) if tiles else compat.update(), gallery.acknowledged(review, client_of(sent))
