"""The routes that the page's script reads: the job's state, its previews, the cards. GET only, without side effects, guarded."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from textual_inversion.app.review import review_of
from textual_inversion.ui import render

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine
    from textual_inversion.app.job import Drawing

PICTURE_ENDINGS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
UNKNOWN_NAME = "This server is not known under that name; open it by its IP address, as in http://192.168.1.7:7860."
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[\w.-]+))(?::[0-9]{1,5})?")  # `name:port` or `[IPv6 address]:port`
Handler = Callable[[Request], Response]


def add_routes(app: Any, engine: Engine, drawing: Drawing | None = None, allowed_hosts: Iterable[str] | None = ()) -> None:
    """Put the routes before all others of `app`, so that no catch-all route matches first. A second call replaces them.

    Args:
        app: a Starlette, FastAPI or gradio app. If it has gradio's `auth`, its login cookie is required.
        drawing: progress of txt2img, for a page that has txt2img.
        allowed_hosts: further host names that are accepted, besides IP addresses and this machine's own name; None = any name, for
            a program that accepts every name itself.
    """
    names = None if allowed_hosts is None else frozenset(name.lower() for name in allowed_hosts)

    def guarded(handler: Handler) -> Handler:
        def answer(request: Request) -> Response:
            if names is not None and not addressed_to_us(request.headers.get("host", ""), names):
                return PlainTextResponse(UNKNOWN_NAME, status_code=400)
            if not logged_in(app, request):
                return PlainTextResponse("Log in first.", status_code=401)
            return handler(request)

        return answer

    prefix = f"/{render.ROUTE}"
    endpoints = {"state": _state(engine, drawing), "picture": _job_picture(engine), "cards": _cards(engine), "card": _card_picture(engine)}
    endpoints["source"] = _source_picture(engine)
    ours = [Route(f"{prefix}/{name}", guarded(handler), methods=["GET"]) for name, handler in endpoints.items()]
    app.router.routes[:] = [*ours, *(route for route in app.router.routes if not getattr(route, "path", "").startswith(f"{prefix}/"))]


def addressed_to_us(header: str, allowed: frozenset[str] = frozenset()) -> bool:
    """Whether a Host header is an IP address, `localhost`, this machine's name or one of `allowed`.

    A foreign name is a sign of DNS rebinding: a foreign site has pointed its own name at this server.
    """
    parts = _HOST.fullmatch(header.strip().lower())
    if parts is None:
        return False
    name = parts["six"] or parts["name"]
    own = socket.gethostname().lower()
    if name in {"localhost", own, f"{own}.local", own.split(".")[0], *allowed}:
        return True
    if name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def logged_in(app: Any, request: Request) -> bool:
    """Whether the request is logged in with gradio's own login; true when `app` has no login."""
    if getattr(app, "auth", None) is None:
        return True
    known = getattr(app, "tokens", {})
    return any(value in known for key, value in request.cookies.items() if key.startswith("access-token"))


class _Json(JSONResponse):
    """JSON in ASCII: a message may contain a file name that UTF-8 cannot encode."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def _state(engine: Engine, drawing: Drawing | None) -> Handler:
    def state(request: Request) -> Response:
        snapshot = engine.job.snapshot()
        snapshot["embeddings"] = engine.embeddings_version()
        checkpoint = engine.checkpoint()
        snapshot["checkpoint"] = checkpoint.name if checkpoint else ""  # the page reports a missing checkpoint where it matters
        if drawing is not None:
            snapshot["drawing"] = drawing.snapshot()
        if request.query_params.get("since") == f"{snapshot['job']}-{snapshot['version']}":
            for key in ("points", "previews", "copies", "messages", "remarks", "evaluations", "verdict"):
                del snapshot[key]
        return _Json(snapshot, headers=_HEADERS)

    return state


def _job_picture(engine: Engine) -> Handler:
    def picture(request: Request) -> Response:
        path = engine.job.picture(request.query_params.get("job", ""), request.query_params.get("file", ""))
        return _file(path, engine.job.folder)

    return picture


def _cards(engine: Engine) -> Handler:
    def cards(request: Request) -> Response:
        items = engine.cards(rescan="rescan" in request.query_params)
        return _Json({"html": render.cards(items), "count": len(items)}, headers=_HEADERS)

    return cards


def _card_picture(engine: Engine) -> Handler:
    def picture(request: Request) -> Response:
        name = request.query_params.get("name", "")
        path = next((card.picture for card in engine.cards() if card.name == name), None)
        return _file(path, path.parent if path else None)  # a host may have several folders, and links to others

    return picture


def _source_picture(engine: Engine) -> Handler:
    """The route for small copies of pictures under review."""

    def picture(request: Request) -> Response:
        place = request.query_params.get("item", "")
        wanted = int(place) if place.isascii() and place.isdigit() and len(place) < 10 else -1
        thumbnail = review_of(engine.job).thumbnail(request.query_params.get("look", ""), wanted)
        if thumbnail is None:
            return PlainTextResponse("There is no such picture.", status_code=404, headers=_HEADERS)
        return Response(thumbnail, media_type="image/jpeg", headers={**_HEADERS, "Cache-Control": "private, max-age=3600"})

    return picture


def _file(path: Path | None, folder: Path | None) -> Response:
    """A picture below `folder`, after symbolic links are resolved; 404 for everything else."""
    if path is not None and folder is not None:
        real = path.resolve()
        kind = PICTURE_ENDINGS.get(real.suffix.lower())
        if kind and real.is_file() and folder.resolve() in real.parents:
            return FileResponse(str(real), media_type=kind, headers={**_HEADERS, "Cache-Control": "private, max-age=3600"})
    return PlainTextResponse("There is no such picture.", status_code=404, headers=_HEADERS)
