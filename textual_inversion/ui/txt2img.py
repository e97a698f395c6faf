"""The txt2img page with the Textual Inversion cards under it, for a program that has no txt2img page."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from textual_inversion.app.job import Drawing, user_message
from textual_inversion.errors import TextualInversionError
from textual_inversion.prompts.names import about_unknown, unknown_names
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.schema import cleaned, setting_of, settings_of
from textual_inversion.ui import compat, form, render

if TYPE_CHECKING:
    from PIL import Image

    from textual_inversion.app.engine import Engine

#: Values where the host suggests none; the slider offers fewer pictures than the settings allow.
_USUAL: dict[str, Any] = {"seed": -1, "count": 4, "count_options": {"maximum": 16}}
_GALLERY: dict[str, Any] = {
    "show_label": False,
    "columns": 2,
    "object_fit": "contain",
    "format": "png",
    "buttons": ["download", "fullscreen"],
}


def build_txt2img_page(engine: Engine, drawing: Drawing) -> dict[str, Any]:
    """Draw the page inside the open gradio context; returns key -> component."""
    values, sections = {**_USUAL, **drawing_values(engine)}, form.txt2img_sections()
    parts: dict[str, Any] = {}
    with gr.Row(elem_classes=["ti-page"]):
        with gr.Column(scale=5, min_width=320, elem_classes=["ti-forms"]):
            with gr.Group(elem_classes=["ti-prompts"]):
                parts.update(form.draw(sections.pop("prompt"), values, "txt2img"))
                parts["tokens"] = gr.HTML(_counted(engine, values.get("prompt", "")), elem_id="ti_tokens")
                parts.update(form.draw(sections.pop("negative prompt"), values, "txt2img"))
                parts["negative_tokens"] = gr.HTML(_counted(engine, ""), elem_id="ti_negative_tokens")
            with gr.Row(elem_classes=["ti-buttons"]):
                generate = gr.Button("Generate", variant="primary", elem_id="ti_generate")
                stop = gr.Button("Interrupt", elem_id="ti_generate_stop", elem_classes=["ti-stop"])
            parts.update(form.draw(sections.pop("settings"), values, "txt2img"))
        with gr.Column(scale=6, min_width=320, elem_classes=["ti-stage"]):
            gr.HTML('<div class="ti-drawing" hidden></div>', elem_id="ti_drawing")
            parts["gallery"] = gr.Gallery(elem_id="ti_gallery", **compat.known(gr.Gallery, **_GALLERY))
            parts["note"] = gr.HTML(_EMPTY, elem_id="ti_generate_note")
    parts["cards"] = _build_cards(engine)
    keys = [each.name for each in settings_of(GenerationSettings) if each.name in parts]
    pages = _Page(engine, drawing, keys)
    compat.on(generate.click, pages.generate, [parts[key] for key in keys], [parts["gallery"], parts["note"]])
    compat.on(stop.click, drawing.interrupt, queue=False)
    for prompt, counter in (("prompt", "tokens"), ("negative_prompt", "negative_tokens")):
        compat.on(parts[prompt].change, pages.count, [parts[prompt]], [parts[counter]])
    return parts


_CARD_BAR = """<div class="ti-cardbar">
<h3>Textual Inversion</h3>
<input type="search" class="ti-search" placeholder="Search" aria-label="Search the cards">
<label class="ti-option" title="Insert the word as &lt;name:1&gt;, whose number is its strength">
<input type="checkbox" class="ti-strength"> with strength</label>
<button type="button" class="ti-refresh" title="Look for files again" aria-label="Refresh the cards">↻</button>
</div>"""


def _build_cards(engine: Engine) -> Any:
    """Draw the cards inside the open gradio context; the script reloads them after a change.

    An empty list shows no message yet: embeddings may appear before the page is opened, and then the script requests the cards.
    """
    cards = engine.cards()
    shelf = f'<div class="ti-shelf">{render.cards(cards) if cards else ""}</div>'
    return gr.HTML(f'<section class="ti-library">{_CARD_BAR}{shelf}</section>', elem_id="ti_cards")


_EMPTY = '<div class="ti-note ti-note-hint">Pictures appear here. A click on a card below puts its word into the prompt.</div>'


class _Page:
    """The page's handlers."""

    def __init__(self, engine: Engine, drawing: Drawing, keys: list[str]) -> None:
        self.engine, self.drawing, self.keys = engine, drawing, keys

    def generate(self, *given: Any) -> Any:
        """Draw and keep the pictures, and report how they were made or why drawing failed. The gallery changes only for new pictures."""
        if not self.drawing.begin():
            return compat.update(), render.note("Something is being drawn already; interrupt it or wait.", "error")
        begun, pictures, folder = time.monotonic(), [], self.engine.host.folders().outputs / "txt2img"
        try:
            values = checked(dict(zip(self.keys, given, strict=True)))
            pictures = self.engine.generate(values, self.drawing.progress, self.drawing.should_stop)
            keep(pictures, folder, values["seed"])
            parameters = str(pictures[0].info.get("parameters", "")) if pictures else ""
            names = [card.name for card in self.engine.cards() if not card.reason]
            unknown = unknown_names((values["prompt"], values["negative_prompt"]), names)  # <…> that name no embedding
            note = render.note(about_unknown(unknown), "hint") + render.made(parameters, time.monotonic() - begun, str(folder))
        except Exception as error:  # noqa: BLE001  for an error that leaves the handler, gradio shows only "Error"
            note = render.note(user_message(error), "error")
        finally:
            self.drawing.end()
        return pictures or compat.update(), note

    def count(self, prompt: str) -> str:
        """The token counter, or why the prompt cannot be read."""
        return _counted(self.engine, prompt or "")


def _counted(engine: Engine, prompt: str) -> str:
    try:
        return render.tokens(*engine.count_tokens(prompt))
    except TextualInversionError as error:
        return render.note(str(error), "error")


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The form's values as the fields of `GenerationSettings`; seed -1 becomes a random one.

    Raises:
        ConfigError: a number field is empty.
    """
    given = cleaned(GenerationSettings, values)
    if given["seed"] < 0:
        given["seed"] = random.SystemRandom().randrange(2**32)
    return given


def keep(pictures: list[Image.Image], folder: Path, seed: int) -> None:
    """Write the pictures as PNG with their parameters inside, as `<day>/<number>-<seed>.png`."""
    from textual_inversion.pictures.parameters import with_parameters

    day = folder / time.strftime("%Y-%m-%d")
    day.mkdir(parents=True, exist_ok=True)
    numbers = [int(found.group()) for path in day.glob("*.png") if (found := re.match(r"\d+", path.name))]
    for index, picture in enumerate(pictures):
        name = f"{max(numbers, default=0) + 1 + index:05}-{(seed + index) % 2**32}.png"
        picture.save(day / name, pnginfo=with_parameters(picture))


def drawing_values(engine: Engine) -> dict[str, Any]:
    """Starting values of the form, with which the first click on Generate works with the chosen checkpoint."""
    side = engine.picture_size() or 512  # without a checkpoint, Generate reports that
    return {
        "sampler": setting_of(GenerationSettings, "sampler").default,
        "sampler_options": {"choices": list(engine.samplers)},
        "width": side,
        "height": side,
        **engine.host.suggestions().drawing,
    }
