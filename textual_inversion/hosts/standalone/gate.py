"""Stands in front of the standalone page: which requests reach it, and what every answer tells the browser."""

from __future__ import annotations

import hmac
import re
import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from textual_inversion.errors import ConfigError
from textual_inversion.files import os_error_words
from textual_inversion.ui import render
from textual_inversion.ui.routes import UNKNOWN_NAME, addressed_to_us
from textual_inversion.ui.uploads import is_uploaded

MAX_EVENT_BYTES = 8 * 2**20  # the values of a form, and the user's changes to pictures under review
MAX_UPLOAD_BYTES = 2**30  # all files of one request together
_API = r"(?:/gradio_api)?"
#: What the page asks for. gradio answers much more: an interface for programs, statistics, a proxy, a history of runs.
_READ = re.compile(
    rf"/|/config|/favicon\.ico|/robots\.txt|/manifest\.json|/(?:static|assets|svelte|{render.ROUTE})/[^\0]*"
    rf"|{_API}/(?:theme\.css|queue/data|upload_progress|heartbeat/\w+|file=[^\0]+)"
)
_WRITE = re.compile(rf"{_API}/(?P<what>queue/join|run/predict|upload)")  # run/predict: Interrupt, which does not wait in the queue
_FILE = re.compile(rf"{_API}/file=(?P<path>.*)", re.DOTALL)
_DENIED = "The page needs its token. Open the address that the program shows when it starts, or enter the token here."
_ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Textual Inversion</title>
<form action="/" method="get"><p>{said}</p>
<input name="token" type="password" autofocus autocomplete="off"> <button>Open</button></form></html>"""
_HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'; object-src 'none'; base-uri 'self'; form-action 'self'",
}


def new_token() -> str:
    """A token that nobody can guess (192 random bits)."""
    return secrets.token_urlsafe(24)


@dataclass(frozen=True)
class Access:
    """Who reaches the page, and how.

    Attributes:
        listen: answer other machines too, not only this one.
        token: what a visitor has to know; empty = everybody who reaches the port comes in.
        certificate: PEM file with the certificate for https; None = http.
        key: PEM file with its private key; None = it is in the certificate's file.
    """

    listen: bool = False
    token: str = ""
    certificate: Path | None = None
    key: Path | None = None

    @property
    def address(self) -> str:
        """The address to listen at."""
        return "0.0.0.0" if self.listen else "127.0.0.1"

    def page(self, port: int) -> str:
        """The page's address on this machine, with the token."""
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://127.0.0.1:{port}" + (f"/?token={self.token}" if self.token else "")

    def tls_options(self) -> dict[str, str]:
        """uvicorn's options for https; empty for http.

        Raises:
            ConfigError: the certificate or the key cannot be used.
        """
        if self.certificate is None:
            if self.key is not None:
                raise ConfigError("The private key needs its certificate; give that with --tls-cert.")
            return {}
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password=lambda: "")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The certificate {self.certificate} cannot be used ({os_error_words(error)}); --tls-cert and --tls-key "
                "need a certificate and its private key as PEM files, the key without a password."
            ) from error
        return {"ssl_certfile": str(self.certificate), **({"ssl_keyfile": str(self.key)} if self.key else {})}


class Gate:
    """ASGI middleware that lets in only what the page itself asks for.

    It refuses, in this order: a foreign Host header, which is a sign of DNS rebinding; requests of foreign web pages, which reach this
    server through the user's browser; requests without the token, if there is one; addresses that the page does not use; bodies that
    are too large.

    Args:
        app: the application behind it.
        token: what a visitor has to know; empty = everybody who reaches the port comes in.
    """

    def __init__(self, app: Any, token: str = "") -> None:
        self.app, self._token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 400, 401, 403, 404, 405 or 413, or pass the request on."""
        if scope["type"] == "websocket":  # the page uses none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":  # start and end of the program
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        await self.app(scope, _limited(receive, _most_bytes(scope)), _with_headers(send))

    def _refusal(self, scope: Any) -> Response | None:
        headers = Headers(scope=scope)
        if len(headers.getlist("host")) != 1 or not addressed_to_us(headers["host"]):
            return PlainTextResponse(UNKNOWN_NAME, status_code=400)
        if not from_our_page(scope):
            return PlainTextResponse("Only this server's own page may ask for that.", status_code=403)
        return self._without_token(scope, headers) or _not_of_the_page(scope) or _too_large(scope, headers)

    def _without_token(self, scope: Any, headers: Headers) -> Response | None:
        """The answer to a visitor who has not shown the token yet, or who shows it in the address; None for others."""
        if not self._token:
            return None
        cookie = f"textual-inversion-{(scope.get('server') or ('', 0))[1]}"  # browsers send one cookie to every port of a machine
        shown = _query(scope).get("token", [""])[0] if scope["path"] == "/" and scope["method"] == "GET" else ""
        if self._known(shown):  # its address without the token is less easily passed on
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(cookie, self._token, httponly=True, samesite="lax", secure=scope["scheme"] == "https", max_age=30 * 86400)
            return answer
        if self._known(_cookies(headers).get(cookie, "")) or self._known(_bearer(headers)):
            return None
        return HTMLResponse(_ASK.format(said=_DENIED), status_code=401, headers={"Cache-Control": "no-store"})

    def _known(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode("utf-8", "replace"), self._token.encode())


def from_our_page(scope: Any) -> bool:
    """Whether a request comes from a page of this server, or from no page, such as a program's request or a typed address.

    A link on a foreign page may open the page itself, for which browsers send `navigate` and `document`.
    """
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"{scope['scheme']}://{headers.get('host', '')}".lower():
        return False
    if headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
        return True
    opens = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
    return opens and scope["method"] == "GET" and scope["path"] == "/"


def _not_of_the_page(scope: Any) -> Response | None:
    path, method = scope["path"], scope["method"]
    if method not in ("GET", "HEAD", "POST"):
        return PlainTextResponse("Only GET, HEAD and POST are answered.", status_code=405)
    known = (_WRITE if method == "POST" else _READ).fullmatch(path)
    file = _FILE.fullmatch(path)
    # gradio reads the state of a deep link from a file, and fetches an address that is given as a file.
    if not known or ".." in path.split("/") or "deep_link" in _query(scope) or (file and not is_uploaded(file["path"])):
        return PlainTextResponse("The page does not use this address.", status_code=404)
    return None


def _too_large(scope: Any, headers: Headers) -> Response | None:
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length) > _most_bytes(scope):
        return PlainTextResponse("The request is too large.", status_code=413, headers={"Connection": "close"})
    return None


def _most_bytes(scope: Any) -> int:
    """How many bytes the body of a request may have."""
    found = _WRITE.fullmatch(scope["path"])
    return 0 if not found else MAX_UPLOAD_BYTES if found["what"] == "upload" else MAX_EVENT_BYTES


def _limited(receive: Any, most: int) -> Any:
    """`receive`, which reports a closed connection once the body has more than `most` bytes, also where its length was not announced."""
    received = 0

    async def counted() -> Any:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        return {"type": "http.disconnect"} if received > most else message

    return counted


def _with_headers(send: Any) -> Any:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
        await send(message)

    return sent


def _query(scope: Any) -> dict[str, list[str]]:
    return parse_qs(scope.get("query_string", b"").decode("latin-1"))


def _bearer(headers: Headers) -> str:
    """The token of an Authorization header; the name of the scheme may be written in any case (RFC 9110, 11.1)."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _cookies(headers: Headers) -> dict[str, str]:
    pairs = (part.partition("=") for line in headers.getlist("cookie") for part in line.split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}
