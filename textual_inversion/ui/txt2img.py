"""The txt2img page with the Textual Inversion cards under it, for a program that has no txt2img page."""

from __future__ import annotations

import logging
import random
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.context import Context

from textual_inversion.app.job import Drawing, user_message
from textual_inversion.errors import TextualInversionError
from textual_inversion.prompts.names import about_unknown, unknown_names
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.infotext import settings_in
from textual_inversion.settings.schema import Setting, cleaned, setting_of, settings_of
from textual_inversion.ui import compat, form, render
from textual_inversion.ui.uploads import upload_folder

if TYPE_CHECKING:
    from PIL import Image

    from textual_inversion.app.engine import Engine

#: Values where the host suggests none; the slider offers fewer pictures than the settings allow.
_log = logging.getLogger(__name__)
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
            with gr.Accordion("Read the settings of a picture", open=False, elem_id="ti_read"):
                parts["read_file"] = gr.File(label="A picture that a WebUI has drawn, as it was saved", elem_id="ti_read_file")
                parts["read_note"] = gr.HTML("", elem_id="ti_read_note")
        with gr.Column(scale=6, min_width=320, elem_classes=["ti-stage"]):
            gr.HTML('<div class="ti-drawing" hidden></div>', elem_id="ti_drawing")
            parts["gallery"] = gr.Gallery(elem_id="ti_gallery", **compat.known(gr.Gallery, **_GALLERY))
            parts["note"] = gr.HTML(_EMPTY, elem_id="ti_generate_note")
            parts["texts"] = gr.State([])
    parts["cards"] = _build_cards(engine)
    keys = [each.name for each in settings_of(GenerationSettings) if each.name in parts]
    pages = _Page(engine, drawing, keys)
    fields, shown = [parts[key] for key in keys], [parts["gallery"], parts["note"], parts["texts"]]
    compat.on(generate.click, pages.generate, fields, shown)
    compat.on(parts["gallery"].select, pages.about, [parts["texts"]], [parts["note"]])
    compat.on(parts["read_file"].change, pages.read, [parts["read_file"]], [parts["read_note"], *fields])
    if Context.root_block is not None:
        compat.on(Context.root_block.load, pages.restore, [], shown)
    compat.on(stop.click, drawing.interrupt, queue=False)
    for prompt, counter in (("prompt", "tokens"), ("negative_prompt", "negative_tokens")):
        compat.on(parts[prompt].change, pages.count, [parts[prompt]], [parts[counter]])
    return parts


_CARD_BAR = """<div class="ti-cardbar">
<h2>Textual Inversion <span class="ti-cardcount"></span></h2>
<select class="ti-filter" aria-label="Which cards"><option value="all">All</option><option value="fit">That fit</option>
<option value="good">Learned well</option><option value="negative">For the negative prompt</option></select>
<select class="ti-order" aria-label="Order of the cards"><option value="fit">Fitting first</option><option value="name">By name</option>
<option value="newest">Newest first</option><option value="steps">Most steps first</option></select>
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
    shelf = f'<div class="ti-shelf" tabindex="0" role="region" aria-label="Cards">{render.cards(cards) if cards else ""}</div>'
    return gr.HTML(f'<section class="ti-library">{_CARD_BAR}{shelf}</section>', elem_id="ti_cards")


_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"  # name of a folder of pictures
_EMPTY = '<div class="ti-note ti-note-hint">Pictures appear here. A click on a card below puts its word into the prompt.</div>'


class _Page:
    """The page's handlers. The last pictures are shown again on a page that is opened later, also after a restart."""

    def __init__(self, engine: Engine, drawing: Drawing, keys: list[str]) -> None:
        self.engine, self.drawing, self.keys = engine, drawing, keys
        self.folder = engine.host.folders().outputs / "txt2img"
        self.last: list[Path] | None = None  # files of the last pictures; None = none were drawn since the start
        self._shown: tuple[list[Path], list[str]] = ([], [])  # the files that were shown last, and their copies for the page

    def generate(self, *given: Any) -> Any:
        """Draw and keep the pictures, and report how they were made or why drawing failed. The gallery changes only for new pictures.

        Returns:
            The gallery's pictures, the note below them, and how each picture was made.
        """
        if not self.drawing.begin():
            return compat.update(), render.note("Something is being drawn already; interrupt it or wait.", "error"), compat.update()
        begun, pictures, texts = time.monotonic(), [], compat.update()
        try:
            values = checked(dict(zip(self.keys, given, strict=True)))
            pictures = drawn = self.engine.generate(values, self.drawing.progress, self.drawing.should_stop)
            texts = [str(picture.info.get("parameters", "")) for picture in drawn] or compat.update()
            files = keep(drawn, self.folder, values["seed"])
            self.last = files or self.last
            pictures = self._copies_of(files)
            names = [card.name for card in self.engine.cards() if not card.reason]
            unknown = unknown_names((values["prompt"], values["negative_prompt"]), names)  # <…> that name no embedding
            note = render.note(about_unknown(unknown), "hint") + self._made(texts if drawn else [], 0, time.monotonic() - begun)
        except Exception as error:  # noqa: BLE001  for an error that leaves the handler, gradio shows only "Error"
            note = render.note(user_message(error), "error")
        finally:
            self.drawing.end()
        return pictures or compat.update(), note, texts

    def restore(self) -> Any:
        """What `generate` returns, for a page that was opened just now: the last pictures, as far as their files are there."""
        nothing = compat.update(), compat.update(), compat.update()
        try:
            files = [path for path in (latest_in(self.folder) if self.last is None else self.last) if path.is_file()]
            if not files:
                return nothing
            texts = [_parameters_or_nothing(path) for path in files]
            return self._copies_of(files), self._made(texts, 0), texts
        except OSError:
            _log.exception("The last pictures cannot be shown")
            return nothing

    def _copies_of(self, files: list[Path]) -> list[str]:
        """Copies for the page; pages that are opened later get the same ones."""
        if self._shown[0] != files or not all(Path(copy).is_file() for copy in self._shown[1]):
            self._shown = (files, for_page(files))
        return self._shown[1]

    def about(self, texts: Any, event: gr.SelectData) -> Any:
        """How the picture that was clicked was made."""
        index = event.index if isinstance(event.index, int) else -1
        return self._made(texts, index) if isinstance(texts, list) and 0 <= index < len(texts) else compat.update()

    def read(self, files: Any) -> list[Any]:
        """A note and updates of the form to the settings in the picture that was given."""
        unchanged = [compat.update() for _ in self.keys]
        paths = compat.uploaded_paths(files)
        if not paths:
            return ["", *unchanged]
        from textual_inversion.pictures.parameters import parameters_in

        try:
            values = settings_in(parameters_in(Path(paths[0])))
        except Exception as error:  # noqa: BLE001  for an error that leaves the handler, gradio shows only "Error"
            return [render.note(user_message(error), "error"), *unchanged]
        kinds = {each.name: each for each in settings_of(GenerationSettings)}
        updates = [compat.update(value=_form_value(kinds[key], values[key])) if key in values else compat.update() for key in self.keys]
        return [render.note("The form has the settings of that picture."), *updates]

    def _made(self, texts: Sequence[str], index: int, seconds: float | None = None) -> str:
        which = f"Picture {index + 1} of {len(texts)}; a click on another one shows how that was made" if len(texts) > 1 else ""
        return render.made(texts[index] if texts else "", str(self.folder), seconds, which)

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


def _form_value(setting: Setting, value: str) -> Any:
    """A setting's text as its component holds it: sliders hold numbers, the other fields text."""
    return setting.clean(value) if form.kind_of(setting) == "slider" else value


def keep(pictures: list[Image.Image], folder: Path, seed: int) -> list[Path]:
    """Write the pictures as PNG with their parameters inside, as `<day>/<number>-<seed>.png`; returns the files. Raises OSError."""
    from textual_inversion.pictures.parameters import with_parameters

    day = folder / time.strftime("%Y-%m-%d")
    day.mkdir(parents=True, exist_ok=True)
    numbers = [int(found.group()) for path in day.glob("*.png") if (found := re.match(r"\d+", path.name))]
    files = []
    for index, picture in enumerate(pictures):
        files.append(day / f"{max(numbers, default=0) + 1 + index:05}-{(seed + index) % 2**32}.png")
        picture.save(files[-1], pnginfo=with_parameters(picture))
    return files


def latest_in(folder: Path) -> list[Path]:
    """The newest pictures that were kept in `folder`, at most as many as one click usually draws."""
    days = sorted(folder.glob(_DAY))  # other folders are the user's
    return sorted(days[-1].glob("[0-9]*.png"))[-_USUAL["count"] :] if days else []


def for_page(files: Sequence[Path]) -> list[str]:
    """Copies of the files, under the same names, where gradio serves files from; a download then has the name and the parameters."""
    if not files:
        return []
    uploads = upload_folder()
    uploads.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="drawn-", dir=uploads))
    return [str(shutil.copyfile(file, place / file.name)) for file in files]


def _parameters_or_nothing(path: Path) -> str:
    from textual_inversion.pictures.parameters import parameters_in

    try:
        return parameters_in(path)
    except TextualInversionError:
        return path.name


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
