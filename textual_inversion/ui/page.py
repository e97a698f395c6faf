"""The Train page: its three tabs beside the running job, connected to the actions; also as a tab inside another program."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.context import Context

from textual_inversion.app.actions import Actions, Outcome, begins_with, name_problem, new_embedding, preview_settings
from textual_inversion.app.checking import Checking, CheckOffer
from textual_inversion.app.copies import kept_before
from textual_inversion.app.installing import Installing
from textual_inversion.app.job import JobKind
from textual_inversion.app.preprocessing import Preprocessing
from textual_inversion.app.remembered import CHECKPOINT_SIZES, remembered
from textual_inversion.errors import TextualInversionError
from textual_inversion.prompts.templates import DEFAULT_TEMPLATE, list_templates
from textual_inversion.settings.schema import defaults_of, folder_text
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.text import counted
from textual_inversion.ui import compat, form, install_box, pictures, preprocess_tab, render, shelf

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine


Parts = dict[str, Any]


@dataclass(frozen=True)
class TrainPage:
    """The components of the page: key -> component for each tab, and the notes and buttons by name."""

    create: Parts
    preprocess: Parts
    train: Parts
    parts: Parts
    actions: Actions

    def stand(self, name: Any, steps: Any, initializer_text: Any = None, num_vectors: Any = None) -> str:
        """The line under the Train tab's name; the last two are the Create tab's values."""
        name = str(name or "").strip()
        job = self.actions.engine.job
        if job.running and job.name == name:
            return ""  # the live part shows this
        card = self.actions.card(name)
        problem = "" if card or not name else name_problem(name)
        number = str(steps or "").strip()
        last_step = int(number) if number.isdecimal() else None
        begins = "" if card or problem or not name else _begins_with(name, initializer_text, num_vectors)
        line = render.note(problem, "error") if problem else render.standing(card, name, last_step, begins)
        line += render.take_back(name) if card and not job.running and kept_before(self.actions.engine, name) else ""
        return line + render.left_out(self.actions.left_out())

    def refresh(self, name: Any, folder: Any, width: Any, height: Any, opened: Any = True) -> Any:
        """Updates of the names to choose from, the strip of pictures and the size, as they are now.

        A page that was opened just now, so that nobody has chosen anything on it, shows the word that was trained last.
        """
        typed = str(name or "").strip()
        untouched = not opened and typed == str(self.train["name"].value or "")
        current = self._current("" if untouched else typed)
        name_update = _name_update(self.actions, current)
        if current == typed:
            name_update.pop("value", None)  # Create may have set another name meanwhile
        return name_update, self.strip(folder), *self._sizes(width, height)

    def remembered(self, name: Any, filled: Any) -> list[Any]:
        """Updates of every field of the Train tab to what the word was trained with last time; a new word changes nothing.

        Args:
            filled: the word whose values the form has already got; it keeps what was changed since.

        Returns:
            The updates of the fields except the name, and the word.
        """
        name = str(name or "").strip()
        values = {} if name == filled else remembered(self.actions.engine, name)
        return [*(compat.update(value=values[key]) if key in values else compat.update() for key in self.train if key != "name"), name]

    def _sizes(self, width: Any, height: Any) -> tuple[Any, Any]:
        """Updates to the checkpoint's native size where the form shows another checkpoint's native size; the user's own size stays."""
        wanted = _size(self.actions.engine).get("width")
        if wanted is None or width != height or width not in CHECKPOINT_SIZES or width == wanted:
            return compat.update(), compat.update()
        return compat.update(value=wanted), compat.update(value=wanted)

    def strip(self, folder: Any) -> str:
        """The pictures of the data set; while preprocessing runs, a note that says so."""
        contents = pictures.pictures_in(folder_text(folder))
        if contents.problem and self.actions.engine.job.about(JobKind.PREPROCESS):
            return render.note("Pictures are being preprocessed; they appear here when that is done.", "hint")
        return contents.html()

    def latest(self) -> str:
        """The embedding that was written last; the suggested name where there is none."""
        engine = self.actions.engine
        return latest(engine.host.folders().embeddings, self.actions.names()) or engine.host.suggestions().new.name

    def _current(self, name: str) -> str:
        """The name to show: the embedding in training; else the latest one, if `name` is only a suggestion without a file; else `name`."""
        engine, known = self.actions.engine, self.actions.names()
        if engine.job.about(JobKind.TRAIN):
            return engine.job.name
        suggested = engine.host.suggestions().new.name
        chosen = name and (name != suggested or name in known)
        return name if chosen else latest(engine.host.folders().embeddings, known) or name or suggested


def build_train_page(
    engine: Engine,
    offer: CheckOffer | None = None,
    drawing_settings: Sequence[Any] = (),
    *,
    list_names: bool = True,
    installing: Installing | None = None,
) -> TrainPage:
    """Draw Create, Preprocess and Train with the running job beside them, inside whatever gradio context is open.

    Args:
        offer: whether to offer a check of the embedding files; None = never.
        drawing_settings: components of a txt2img page that previews may take their settings from, as `actions.DRAWING_SETTINGS`.
        list_names: fill the list of embeddings now; otherwise the page requests it when it opens, so that a program with many tabs
            starts sooner.
        installing: installs from addresses; None = as `Installing(engine)` does.
    """
    actions = Actions(engine)
    engine.job.keep_in(engine.host.folders().outputs)
    values = starting_values(actions, list_names=list_names)
    parts: Parts = {}
    _check_box(parts)
    with gr.Row(elem_classes=["ti-page"]):
        with gr.Column(scale=5, min_width=320, elem_classes=["ti-forms"]), gr.Tabs(elem_id="ti_tabs", selected="ti_train") as parts["tabs"]:
            with gr.Tab("Create", id="ti_create", elem_id="ti_tab_create"):
                create = _create_tab(values["create"], parts)
            with gr.Tab("Preprocess", id="ti_preprocess", elem_id="ti_tab_preprocess"):
                preprocess = preprocess_tab.draw(values["preprocess"], parts)
            with gr.Tab("Train", id="ti_train", elem_id="ti_tab_train"):
                train = _train_tab(values["train"], parts, can_follow=bool(drawing_settings))
        with gr.Column(scale=6, min_width=320, elem_classes=["ti-stage"]):
            gr.HTML(render.live(), elem_id="ti_live")
    preprocess_tab.draw_gallery(parts)
    page = TrainPage(create, preprocess, train, parts, actions)
    _wire_check(page, Checking(engine, offer))
    _wire_create(page)
    install_box.wire(parts, installing or Installing(engine))
    preprocess_tab.wire(preprocess, parts, engine, train["images"], actions.interrupt)
    _wire_train(page, list(drawing_settings))
    shelf.wire(parts, engine, train["name"], lambda name: _name_update(actions, name or page.latest()))
    return page


def starting_values(actions: Actions, *, list_names: bool = True) -> dict[str, Parts]:
    """Starting values of the three forms, with which the first click on Train works; `list_names` as for `build_train_page`."""
    engine = actions.engine
    suggested, folders = engine.host.suggestions(), engine.host.folders()
    new = suggested.new
    names = actions.names() if list_names else []
    templates = list_templates(folders.templates) if folders.templates.is_dir() else []
    outputs = folders.outputs
    places = {"images": str(folders.pictures), "log_dir": str(outputs / "training")}
    train = {**defaults_of(TrainingConfig), **places, **_size(engine), **suggested.training}
    train["latent_cache"] = train["latent_cache"] or str(outputs / "latents")
    train["name"] = (latest(folders.embeddings, names) if names else "") or new.name
    if list_names:  # looking for the word's file reads the library
        train |= remembered(engine, train["name"])
    train["name_options"] = {"choices": sorted({*names, train["name"]}, key=str.casefold)}
    train["template"] = train["template"] or (DEFAULT_TEMPLATE if DEFAULT_TEMPLATE in templates else next(iter(templates), None))
    train["template_options"] = {"choices": templates}
    create = {"name": new.name, "initializer_text": new.initializer_text, "num_vectors": str(new.num_vectors)}
    describers = Preprocessing(engine).captioners()
    preprocess = form.preprocess_values(str(outputs / "preprocessed"), train["width"], train["height"], describers)
    return {"create": create, "preprocess": preprocess, "train": train}


def _size(engine: Engine) -> Parts:
    size = engine.picture_size()  # a WebUI may not have a checkpoint yet; the click on Train says so
    return {"width": size, "height": size} if size else {}


def latest(folder: Path, names: list[str]) -> str:
    """Name of the trainable embedding with the newest file."""
    files = [path for path in folder.iterdir() if path.stem in names] if folder.is_dir() else []
    return max(files, key=_modified).stem if files else ""


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # deleted since the folder was listed


def _check_box(parts: Parts) -> None:
    """Draw the check box above the tabs; the style sheet shows the buttons that belong to its text."""
    with gr.Column(elem_id="ti_check", elem_classes=["ti-checkbox"]):
        parts["check_text"] = gr.HTML("", elem_id="ti_check_text")  # the page's script requests its text
        with gr.Row(elem_classes=["ti-buttons", "ti-check-offer"]):
            parts["check_button"] = gr.Button("Check all files", variant="primary", elem_id="ti_check_button")
            parts["check_refuse"] = gr.Button("Not now", elem_id="ti_check_refuse")
        with gr.Row(elem_classes=["ti-buttons", "ti-check-found"]):
            parts["check_move"] = gr.Button("Move dangerous files aside", variant="primary", elem_id="ti_check_move")
            parts["check_done"] = gr.Button("Close", elem_id="ti_check_done")
    for name in ("check_button", "check_refuse", "check_move", "check_done"):
        compat.not_saved(parts[name])


def _wire_check(page: TrainPage, checking: Checking) -> None:
    parts = page.parts
    shown = [parts["check_text"], parts["check_move"]]

    def box(outcome: Outcome | None = None) -> Any:
        note = render.outcome(outcome) if outcome and outcome.text else ""
        return render.check_box(checking) + note, compat.update(value=f"Move {counted(checking.dangerous, 'dangerous file')} aside")

    def refuse() -> Any:
        checking.refuse()
        return box()

    compat.on(parts["check_button"].click, lambda: box(checking.begin()), [], shown)
    compat.on(parts["check_move"].click, lambda: box(checking.move()), [], shown)
    compat.on(parts["check_refuse"].click, refuse, [], shown)
    compat.on(parts["check_done"].click, refuse, [], shown)
    compat.on(parts["refresh"].click, box, [], shown)  # for a new page, or after a job


def _create_tab(values: Mapping[str, Any], parts: Parts) -> Parts:
    gr.HTML(
        render.intro("A new word", "Its vectors start from words that the model knows; training then moves them towards your pictures.")
    )
    drawn = form.draw(form.create_rows(), values, "create")
    parts["create_button"] = gr.Button("Create embedding", variant="primary", elem_id="ti_create_button")
    parts["create_note"] = gr.HTML("", elem_id="ti_create_note")
    install_box.draw(parts)
    return drawn


def _train_tab(values: Mapping[str, Any], parts: Parts, *, can_follow: bool) -> Parts:
    sections = form.train_sections()
    drawn = form.draw(sections.pop("word"), values, "train")
    parts["standing"] = gr.HTML("", elem_id="ti_standing")
    shelf.draw(parts)
    drawn.update(form.draw(sections.pop("pictures"), values, "train"))
    parts["strip"] = gr.HTML("", elem_id="ti_strip")
    with gr.Accordion("Drop pictures here instead", open=False, elem_id="ti_drop"):
        parts["files"] = gr.File(label="Pictures, with .txt captions if you have them", file_count="multiple", elem_id="ti_files")
        parts["files_note"] = gr.HTML("", elem_id="ti_files_note")
    drawn.update(form.draw(sections.pop("basics"), values, "train"))
    with gr.Row(elem_classes=["ti-buttons"]):
        parts["train_button"] = gr.Button("Train embedding", variant="primary", elem_id="ti_train_button")
        parts["train_stop"] = gr.Button("Interrupt", elem_id="ti_train_stop", elem_classes=["ti-stop"])
        parts["train_check"] = gr.Button("Check", elem_id="ti_train_check", elem_classes=["ti-stop"])
    parts["train_note"] = gr.HTML("", elem_id="ti_train_note")
    for title, rows in sections.items():
        with gr.Accordion(title, open=False, elem_classes=["ti-group"]):
            drawn.update(form.draw(rows, values, "train"))
            if can_follow and title == form.PREVIEWS:
                parts["as_txt2img"] = form.component(form.AS_TXT2IMG, {}, "train")
    parts["asked"], parts["opened"], parts["filled"] = gr.State(""), gr.State(False), gr.State("")
    # The page's script writes to and clicks these: "Use this step" and "Take back".
    parts["exchange_sent"] = compat.not_saved(gr.Textbox("", elem_id="ti_exchange_sent", elem_classes=["ti-hidden"], show_label=False))
    parts["exchange"] = compat.not_saved(gr.Button("Exchange", elem_id="ti_exchange", elem_classes=["ti-hidden"]))
    # The page's script clicks this when a job ends. A class hides it: gradio 5 leaves components with visible=False out of the page.
    parts["refresh"] = gr.Button("Refresh", elem_id="ti_train_refresh", elem_classes=["ti-hidden"])
    return drawn


def _wire_create(page: TrainPage) -> None:
    keys, parts, actions = list(page.create), page.parts, page.actions

    def create(*values: Any) -> Any:
        outcome = actions.create(dict(zip(keys, values, strict=True)))
        return render.outcome(outcome, "create"), _name_update(actions, outcome.name), compat.update(value=False)

    def renamed(name: str, chosen: str) -> Any:
        """Show Create's name on the Train tab, unless an existing embedding is chosen there."""
        name, known = (name or "").strip(), actions.names()
        return compat.update() if chosen in known or not name else compat.update(value=name, choices=[*known, name])

    outputs = [parts["create_note"], page.train["name"], page.create["overwrite"]]
    compat.on(parts["create_button"].click, create, page.create.values(), outputs)
    compat.on(page.create["name"].change, renamed, [page.create["name"], page.train["name"]], [page.train["name"]])


def _wire_train(page: TrainPage, drawing_settings: list[Any]) -> None:
    parts, actions, train = page.parts, page.actions, page.train
    keys, new_keys = list(train), list(page.create)

    def start(asked: Any, *values: Any) -> Any:
        given, new = dict(zip(keys, values)), dict(zip(new_keys, values[len(keys) :]))
        if drawing_settings and values[len(keys) + len(new_keys)]:
            given |= preview_settings(values[-len(drawing_settings) :], given.get("preview_seed"))
        outcome = actions.train(given, new, str(asked or ""))
        if outcome.kind == "ask":
            return render.question(outcome, "Press “Train embedding” again to do so."), compat.update(), outcome.text
        note = render.outcome(outcome, "train", form.group_of(outcome.setting))
        return note, compat.update() if outcome.failed else "", ""

    def check(*values: Any) -> str:
        preflight = actions.check(dict(zip(keys, values)), dict(zip(new_keys, values[len(keys) :])))
        return render.findings(preflight.findings)

    def dropped(files: Any) -> Any:
        return pictures.drop(files, actions.engine.host.folders().outputs / "pictures", "dataset directory")

    name, steps, images = train["name"], train["steps"], train["images"]
    about = [name, steps, page.create["initializer_text"], page.create["num_vectors"]]
    inputs = [*train.values(), *page.create.values(), *([parts["as_txt2img"], *drawing_settings] if drawing_settings else [])]
    compat.on(parts["train_button"].click, start, [parts["asked"], *inputs], [parts["train_note"], parts["standing"], parts["asked"]])
    compat.on(parts["train_stop"].click, lambda: render.outcome(actions.interrupt()), [], [parts["train_note"]], queue=False)
    said = compat.on(
        parts["exchange"].click, lambda sent: render.outcome(actions.exchange(sent)), [parts["exchange_sent"]], [parts["train_note"]]
    )
    compat.on(said.then, page.stand, about, [parts["standing"]])
    compat.on(parts["train_check"].click, check, [*train.values(), *page.create.values()], [parts["train_note"]])
    filled = [*(component for key, component in train.items() if key != "name"), parts["filled"]]
    compat.on(name.change, page.remembered, [name, parts["filled"]], filled)
    for changed in about:
        compat.on(changed.change, page.stand, about, [parts["standing"]])
    compat.on(images.change, page.strip, [images], [parts["strip"]])
    compat.on(parts["files"].change, dropped, [parts["files"]], [parts["files_note"], images])
    shown = [name, parts["strip"], train["width"], train["height"], parts["opened"]]
    refreshed = compat.on(
        parts["refresh"].click,
        lambda *values: (*page.refresh(*values), True),
        [name, images, train["width"], train["height"], parts["opened"]],
        shown,
    )
    compat.on(refreshed.then, page.remembered, [name, parts["filled"]], filled)
    compat.on(refreshed.then, page.stand, about, [parts["standing"]])  # runs last, with the name that the refresh has set


def _begins_with(name: str, initializer_text: Any, num_vectors: Any) -> str:
    """What Train would create a new embedding with; empty where the Create tab's values cannot be used, which Train reports."""
    if initializer_text is None or num_vectors is None:
        return ""
    try:
        return begins_with(new_embedding({"name": name, "initializer_text": initializer_text, "num_vectors": num_vectors}))
    except TextualInversionError:
        return ""


def _name_update(actions: Actions, name: str) -> Any:
    names = actions.names()
    if not name:
        return compat.update(choices=names)
    return compat.update(choices=sorted({*names, name}, key=str.casefold), value=name)


_log = logging.getLogger(__name__)
TITLE = "Textual Inversion"
TAB_ID = "textual_inversion"


def draw_train_tab(
    engine: Engine,
    offer: CheckOffer | None = None,
    drawing_settings: Sequence[Any] = (),
    *,
    first: bool = False,
    installing: Installing | None = None,
) -> TrainPage:
    """Add a tab with the Train page to the open gradio Tabs.

    Args:
        offer: whether to offer a check of the embedding files; None = never.
        drawing_settings: components of txt2img that previews may take their settings from, in the order of
            `actions.DRAWING_SETTINGS`; empty where there is no such page.
        first: select this tab when the page opens; its position stays last.
        installing: as for `build_train_page`.
    """
    around = Context.block
    with gr.Tab(TITLE, id=TAB_ID, elem_id="ti_host_tab"):
        page = build_train_page(engine, offer, drawing_settings, list_names=False, installing=installing)
    if first and isinstance(around, gr.Tabs):
        around.selected = TAB_ID
    return page


class TrainBlocks(gr.Blocks):
    """The Train page as Blocks, for a program that renders the Blocks of each tab inside its own.

    `render` draws the page directly into that program's page: for Blocks that are drawn separately, gradio would build a web
    application that nobody uses.

    Args:
        offer, drawing_settings, installing: as in `draw_train_tab`.
    """

    def __init__(
        self, engine: Engine, offer: CheckOffer | None = None, drawing_settings: Sequence[Any] = (), installing: Installing | None = None
    ) -> None:
        super().__init__(analytics_enabled=False)
        self._page, self._installing = (engine, offer, drawing_settings), installing

    def render(self) -> TrainBlocks:
        """Draw the page inside the gradio context that is open."""
        with gr.Column() as column:
            try:
                build_train_page(*self._page, list_names=False, installing=self._installing)
            except Exception:  # noqa: BLE001  no error of ours may break the program's whole page
                _log.exception("The Train tab could not be drawn")
                gr.HTML(render.note("The Train tab could not be drawn; the console says why.", "error"))
        self.children = [column]
        return self
