"""The standalone WebUI: txt2img and Train on one page, served from this machine. Puts the page and the host together."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import logging
import os
import shutil
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
import uvicorn
from fastapi import FastAPI

from textual_inversion.app.checking import CheckOffer
from textual_inversion.app.engine import Engine
from textual_inversion.app.job import Drawing, Job
from textual_inversion.errors import ConfigError, TextualInversionError
from textual_inversion.hosts.standalone.gate import Access, Gate
from textual_inversion.ui import compat, render
from textual_inversion.ui.page import TrainPage, build_train_page, starting_values
from textual_inversion.ui.pictures import MAX_BYTES
from textual_inversion.ui.routes import add_routes
from textual_inversion.ui.txt2img import build_txt2img_page, drawing_values
from textual_inversion.ui.uploads import guard_events

PACKAGE = Path(__file__).resolve().parents[2]
_OWN_CHOICES = {("train", "name"), ("train", "template"), ("txt2img", "prompt")}  # fields that do not depend on the checkpoint
_ACCENT = gr.themes.Color(
    "#fdf1ed", "#fbe0d8", "#f6c0b0", "#f09b84", "#e9745a", "#dc5638", "#b93c25", "#a73623", "#862d1f", "#6b271d", "#3b130d"
)
_INK = gr.themes.Color(
    "#fbfaf7", "#f5f2ec", "#e8e3d9", "#d3ccbf", "#a59d90", "#6d665d", "#5a544c", "#413d37", "#2b2824", "#1e1c19", "#151412"
)
_SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_SIDE_DOORS = ("run_history", "enable_monitoring", "mcp_server", "pwa")  # of gradio, as far as a version has them
_own_folders: list[str] = []  # for uploads, made by this program
_log = logging.getLogger(__name__)


class CheckpointList(Protocol):
    """The checkpoints that a person can choose from at the top of the page."""

    def checkpoints(self) -> list[str]:
        """Their names."""

    def choose_checkpoint(self, name: str) -> None:
        """Choose by name; raises `CheckpointError` when it cannot be used, and then keeps the earlier choice."""


def build_app(engine: Engine, checkpoints: CheckpointList, offer: CheckOffer | None = None, token: str = "") -> FastAPI:
    """The whole WebUI as an ASGI app.

    Args:
        engine: does the work.
        checkpoints: what can be chosen at the top of the page.
        offer: whether the page offers to check the embedding files; None = never, because this program never runs code inside files.
        token: what a visitor has to know; empty = everybody who reaches the port comes in.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    _own_upload_folder()
    drawing = Drawing()
    outside: dict[str, Any] = {"theme": _theme(), "head": f"<style>{page_style()}</style>\n{page_script()}"}
    blocks = build_blocks(engine, checkpoints, drawing, offer, {} if compat.STYLE_AT_MOUNT else outside)
    blocks.queue()
    guard_events(blocks)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, token=token)
    late = outside if compat.STYLE_AT_MOUNT else {}
    # A history of runs would let the page use the user's Hugging Face token.
    off = {key: False for key in _SIDE_DOORS if key in inspect.signature(gr.mount_gradio_app).parameters}
    mounted = gr.mount_gradio_app(app, blocks, path="/", show_error=True, max_file_size=MAX_BYTES, **off, **late)
    add_routes(mounted, engine, drawing)
    return mounted


def _own_upload_folder() -> None:
    """Let gradio keep uploads in a new folder that other users of this machine cannot read; the program's end deletes it.

    gradio's own choice is one folder in the system's temporary folder for all users, in which the second user cannot write.
    """
    if not os.environ.get("GRADIO_TEMP_DIR"):
        os.environ["GRADIO_TEMP_DIR"] = folder = os.path.realpath(tempfile.mkdtemp(prefix="textual-inversion-"))
        _own_folders.append(folder)
        atexit.register(_delete_own_folders)


def _delete_own_folders() -> None:
    while _own_folders:
        folder = _own_folders.pop()
        shutil.rmtree(folder, ignore_errors=True)
        if os.environ.get("GRADIO_TEMP_DIR") == folder:
            del os.environ["GRADIO_TEMP_DIR"]


class Server(uvicorn.Server):
    """Serves the WebUI. Before it ends, a running job writes its learned vectors.

    Args:
        app: what `build_app` gives.
        job: the job of the engine that the app works with.
        ready: called with the page's address as soon as it can be opened.
        access: its token is part of the page's address, and its certificate makes that https.

    Raises:
        ConfigError: the certificate cannot be used.
    """

    def __init__(
        self,
        app: FastAPI,
        job: Job,
        address: str,
        port: int,
        ready: Callable[[str], None] | None = None,
        access: Access = Access(),  # noqa: B008  it cannot be changed
    ) -> None:
        # An open page never ends its event stream by itself, hence the limit.
        options = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": 2, "server_header": False}
        super().__init__(uvicorn.Config(app, host=address, port=port, **options, **access.tls_options()))
        self._job, self._ready, self._page = job, ready, access.page(port)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then call `ready`."""
        await super().startup(sockets)
        if self.started and self._ready:
            self._ready(self._page)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Interrupt the job, wait for it, then close."""
        self._job.interrupt()
        await asyncio.to_thread(self._job.wait, 30)
        await super().shutdown(sockets)
        _delete_own_folders()  # a program that is asked to end by a signal runs nothing after this


def build_blocks(
    engine: Engine, checkpoints: CheckpointList, drawing: Drawing, offer: CheckOffer | None, keywords: dict[str, Any]
) -> gr.Blocks:
    """Header, txt2img, Train."""
    with gr.Blocks(title="Textual Inversion", analytics_enabled=False, delete_cache=(3600, 86400), **keywords) as blocks:
        with gr.Row(elem_classes=["ti-header"]):
            gr.HTML(render.heading(), elem_id="ti_heading")
            checkpoint = gr.Dropdown(
                elem_id="ti_checkpoint", label="Checkpoint", min_width=200, container=True, **_listed(engine, checkpoints)
            )
        about = gr.HTML(render.note(engine.about_checkpoint(), "hint"), elem_id="ti_checkpoint_note")
        with gr.Tabs(elem_id="ti_pages", selected="ti_page_train"):
            with gr.Tab("txt2img", id="ti_page_txt2img", elem_id="ti_page_txt2img"):
                pictures = build_txt2img_page(engine, drawing)
            with gr.Tab("Train", id="ti_page_train", elem_id="ti_page_train"):
                page = build_train_page(engine, offer)
        _follow_checkpoint(_Chooser(checkpoints, page, pictures), blocks, checkpoint, about)
    return blocks


def _listed(engine: Engine, checkpoints: CheckpointList) -> dict[str, Any]:
    """Properties of the list of checkpoints: those that are there now, and the chosen one."""
    names, chosen = checkpoints.checkpoints(), engine.checkpoint()
    return {"choices": names, "value": chosen.name if chosen and chosen.name in names else None}


class _Chooser:
    """The handlers of the list of checkpoints; `fields` are the components whose values a checkpoint suggests."""

    def __init__(self, checkpoints: CheckpointList, page: TrainPage, pictures: dict[str, Any]) -> None:
        self.checkpoints, self.page = checkpoints, page
        forms = {"create": page.create, "preprocess": page.preprocess, "train": page.train, "txt2img": pictures}
        now = self._suggested()
        places = [(form, key) for form, parts in forms.items() for key in parts if key in now[form]]
        self._places = [place for place in places if place not in _OWN_CHOICES]
        self.fields = [forms[form][key] for form, key in self._places]
        self._built = self._values()

    def choose(self, name: str, *shown: Any) -> list[Any]:
        """Choose a checkpoint and fill in its suggested values; values that the user has changed stay. Returns note, list, fields."""
        before = self._values()
        try:
            self.checkpoints.choose_checkpoint(name)
        except TextualInversionError as error:
            return [render.note(str(error), "error"), self.listed(), *[compat.update() for _ in shown]]
        return [self.about(), compat.update(), *_changes(shown, before, self._values())]

    def about(self) -> str:
        """What the chosen checkpoint is, and how that is known."""
        return render.note(self.page.actions.engine.about_checkpoint(), "hint")

    def listed(self) -> Any:
        """The checkpoints that are there now, and the chosen one."""
        return compat.update(**_listed(self.page.actions.engine, self.checkpoints))

    def afresh(self, *shown: Any) -> list[Any]:
        """For a page that is opened after another checkpoint was chosen: the list, and what that checkpoint suggests."""
        return [self.listed(), *_changes(shown, self._built, self._values())]

    def _suggested(self) -> dict[str, dict[str, Any]]:
        return {**starting_values(self.page.actions), "txt2img": drawing_values(self.page.actions.engine)}

    def _values(self) -> list[Any]:
        now = self._suggested()
        return [now[form].get(key) for form, key in self._places]


def _changes(shown: Sequence[Any], before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
    """New values for the fields that still show the earlier suggestion."""
    return [compat.update(value=new) if value == old != new else compat.update() for value, old, new in zip(shown, before, after)]


def _follow_checkpoint(chooser: _Chooser, blocks: gr.Blocks, checkpoint: Any, about: Any) -> None:
    # input, not change: values set by the page are not the user's choice
    compat.on(checkpoint.input, chooser.choose, [checkpoint, *chooser.fields], [about, checkpoint, *chooser.fields])
    compat.on(blocks.load, chooser.afresh, chooser.fields, [checkpoint, *chooser.fields])
    compat.on(blocks.load, chooser.about, [], [about])
    compat.on(chooser.page.parts["refresh"].click, chooser.listed, [], [checkpoint])  # the choice of another window


def _theme() -> Any:
    """Warm paper and ink, one vermilion accent; the system's fonts, so that nothing is fetched."""
    base = gr.themes.Base(
        primary_hue=_ACCENT, secondary_hue=_ACCENT, neutral_hue=_INK, font=_SANS, font_mono=_MONO, radius_size=gr.themes.sizes.radius_md
    )
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="600",
        block_info_text_size="*text_xs",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700",
        input_background_fill="#ffffff",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_width="1px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="*neutral_200",
        button_secondary_background_fill_hover="*neutral_300",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        slider_color="*primary_600",
        slider_color_dark="*primary_500",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_600",
        checkbox_border_color_selected="*primary_600",
        checkbox_border_color_selected_dark="*primary_600",
    )


def page_style() -> str:
    """The style sheet that every host shares, and this page's own."""
    return _text(shared_folder() / "style.css") + _text(PACKAGE / "assets" / "standalone.css")


def page_script() -> str:
    """The scripts that every host shares, for the page's head."""
    paths = sorted((shared_folder() / "javascript").glob("textual_inversion*.js"))
    return "".join(f"<script>{_text(path)}</script>\n" for path in paths)


def shared_folder() -> Path:
    """Where `style.css` and `javascript/` are: beside the package in the repository, among a wheel's data files otherwise.

    Raises:
        ConfigError: in neither place.
    """
    try:
        installed = metadata.files("textual-inversion") or []
    except metadata.PackageNotFoundError:
        installed = []
    places = [PACKAGE.parent, PACKAGE.parent / "share" / "textual-inversion"]  # the repository; `pip install --target`
    places += [Path(str(file.locate())).resolve().parent for file in installed if file.parts[-2:] == ("textual-inversion", "style.css")]
    for place in places:
        if (place / "style.css").is_file() and (place / "javascript").is_dir():
            return place
    raise ConfigError(f"The page's style.css is neither in {PACKAGE.parent} nor installed; run from a complete copy of the project.")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The page's file {path} cannot be read ({error.strerror}); run from a complete copy of the project.") from error


def serve(
    port: int = 7870,
    access: Access = Access(),  # noqa: B008  it cannot be changed
    checkpoint: Path | str | None = None,
    open_browser: bool = True,
    data_dir: Path | str | None = None,
    *,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve the WebUI until it is stopped with Ctrl+C.

    Args:
        port: TCP port (1 to 65535).
        access: who reaches the page; without it this machine only, without a token.
        checkpoint: a checkpoint's file or folder; None = the tiny one that ships.
        open_browser: open the page in a browser as soon as it is reachable.
        data_dir: folder for embeddings and pictures; None = `default_data_folder()`.
        announce: called with the page's address as soon as it is reachable; None = log the address.

    Raises:
        ConfigError: the port is taken, or the certificate cannot be used. CheckpointError: no such checkpoint.
    """
    from textual_inversion.hosts.standalone.adapter import StandaloneHost, default_data_folder

    def ready(page: str) -> None:
        if announce:
            announce(page)
        else:
            _log.warning("The page is at %s (Ctrl+C ends it).", page)
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()  # some browsers keep the caller waiting

    access.tls_options()
    check_port(access.address, port)
    data = Path(data_dir).expanduser() if data_dir else default_data_folder()
    host = StandaloneHost(data, Path(checkpoint).expanduser() if checkpoint else None)
    engine = Engine(host)
    Server(build_app(engine, host, token=access.token), engine.job, access.address, port, ready, access).run()


def check_port(address: str, port: int) -> None:
    """Raise `ConfigError` when `port` is taken or not allowed."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # on Windows this option would let two servers share the port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"Port {port} cannot be had ({error}); close the program that has it, or choose another with --port."
            ) from error
