"""What a raw request to the standalone page gets: tables of who is let in, where, and with which token."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from textual_inversion.errors import ConfigError
from textual_inversion.hosts.fake import FakeEngine, FakeHost
from textual_inversion.hosts.standalone import build_app
from textual_inversion.hosts.standalone import gate as gates

HERE = "http://127.0.0.1:7870"
EVENT = {"fn_index": 0, "data": [], "session_hash": "x"}
#: Addresses that gradio or FastAPI answer, and that the page does not use.
SIDE_DOORS = [
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/gradio_api/openapi.json"),
    ("GET", "/gradio_api/info"),
    ("GET", "/monitoring"),
    ("GET", "/monitoring/summary"),
    ("GET", "/gradio_api/runs"),
    ("GET", "/gradio_api/run-history/buckets"),
    ("POST", "/gradio_api/run-history/connect"),
    ("GET", "/gradio_api/deep_link?session_hash=x"),
    ("GET", "/?deep_link=x"),
    ("GET", "/config?deep_link=x"),
    ("GET", "/gradio_api/dev/reload"),
    ("GET", "/gradio_api/token"),
    ("GET", "/gradio_api/app_id"),
    ("GET", "/gradio_api/startup-events"),
    ("POST", "/gradio_api/reset"),
    ("POST", "/gradio_api/cancel"),
    ("GET", "/gradio_api/run/predict"),
    ("POST", "/gradio_api/run/other"),
    ("POST", "/gradio_api/api/predict"),
    ("POST", "/gradio_api/call/x"),
    ("POST", "/gradio_api/component_server"),
    ("POST", "/gradio_api/process_recording"),
    ("POST", "/gradio_api/vibe-edit"),
    ("POST", "/gradio_api/stream/x"),
    ("POST", "/login"),
    ("GET", "/gradio_api/proxy=http://192.0.2.1/x"),
    ("GET", "/gradio_api/proxy=%00"),
    ("GET", "/gradio_api/file=http://192.0.2.1/x"),
    ("GET", "/gradio_api/file=/etc/passwd"),
    ("GET", "/gradio_api/file=/dev/zero"),
    ("GET", "/gradio_api/file=%2Fdev%2Fzero"),
    ("GET", "/gradio_api/file/etc/passwd"),
    ("GET", "/file=/etc/passwd"),
    ("GET", "/static/..%2f..%2f..%2fetc/passwd"),
    ("GET", "/gradio_api/custom_component/x/client/component/x"),
]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The app with a token; drawing the page takes a second, hence once for each token."""

    @cache
    def built(token: str) -> Any:
        engine = FakeEngine(FakeHost(tmp_path_factory.mktemp("data") / "host"), pace=0.0005)
        return build_app(engine, engine.host, token=token)

    return built


@pytest.fixture
def web(build: Callable[[str], Any]) -> TestClient:
    return TestClient(build(""), base_url=HERE, raise_server_exceptions=False)


@pytest.fixture
def locked(build: Callable[[str], Any]) -> TestClient:
    return TestClient(build("open-sesame"), base_url=HERE, follow_redirects=False)


def test_the_page_and_what_it_asks_for_are_answered(web: TestClient) -> None:
    for path in ("/", "/config", "/theme.css", "/textual-inversion/state", "/textual-inversion/cards"):
        assert web.get(path).status_code == 200, path
    uploaded = web.post("/gradio_api/upload", files={"files": ("a.txt", b"mine")}).json()[0]
    assert web.get(f"/gradio_api/file={uploaded}").text == "mine"
    assert web.post("/gradio_api/queue/join", json=EVENT).status_code == 200
    assert web.post("/gradio_api/run/predict", json=EVENT).status_code != 404  # events that do not wait, such as Interrupt's


@pytest.mark.parametrize(("method", "path"), SIDE_DOORS)
def test_an_address_that_the_page_does_not_use_is_not_answered(web: TestClient, method: str, path: str) -> None:
    assert web.request(method, path).status_code == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_not_answered(web: TestClient, method: str) -> None:
    assert web.request(method, "/").status_code == 405


def test_only_uploads_are_served_whatever_lies_in_their_folder(web: TestClient, tmp_path: Path) -> None:
    folder = Path(os.environ["GRADIO_TEMP_DIR"]) / "x"
    folder.mkdir(exist_ok=True)
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (folder / "link").unlink(missing_ok=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "fifo").unlink(missing_ok=True)
    os.mkfifo(folder / "fifo")
    for name in ("link", "fifo", "", "../x/link", "missing"):
        assert web.get(f"/gradio_api/file={folder}/{name}").status_code == 404, name


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps rights in another way")
def test_uploads_lie_in_a_folder_of_the_users_own(web: TestClient) -> None:
    assert os.stat(os.environ["GRADIO_TEMP_DIR"]).st_mode & 0o077 == 0 or "PYTEST_XDIST_WORKER" in os.environ


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": HERE}, 200),
        ({"origin": HERE.upper()}, 200),
        ({"origin": "https://127.0.0.1:7870"}, 403),  # another scheme
        ({"origin": "http://127.0.0.1"}, 403),
        ({"origin": "http://127.0.0.1:7871"}, 403),
        ({"origin": "http://localhost:7870"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "same-origin", "origin": HERE}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),  # a page on another port of this machine
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, 403),
        ({"sec-fetch-site": "something new"}, 403),
    ],
)
def test_who_may_ask(web: TestClient, headers: dict[str, str], status: int) -> None:
    assert web.get("/textual-inversion/state", headers=headers).status_code == status
    assert web.post("/gradio_api/queue/join", json=EVENT, headers=headers).status_code == status


def test_a_link_on_another_page_opens_the_page_and_does_nothing_else(web: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert web.get("/", headers=headers).status_code == 200
    assert web.get("/textual-inversion/cards?rescan=1", headers=headers).status_code == 403
    assert web.post("/gradio_api/queue/join", json=EVENT, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "[::1]evil.example",
        "[::1",
        "::1",
        "127.0.0.1@evil.example",
        "127.0.0.1:7870:1",
        "127.0.0.1:port",
        "127.0.0.1 x",
        "a/b",
        "",
    ],
)
def test_a_foreign_or_odd_host_header_is_refused(web: TestClient, host: str) -> None:
    assert web.get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:7870", "127.0.0.1", "[::1]:7870", "192.168.1.7:7870"])
def test_our_own_names_are_answered(web: TestClient, host: str) -> None:
    assert web.get("/textual-inversion/state", headers={"host": host}).status_code == 200


def test_two_host_headers_are_refused(web: TestClient) -> None:
    assert web.get("/", headers=[("host", "127.0.0.1:7870"), ("host", "evil.example")]).status_code == 400  # type: ignore[arg-type]


def test_no_other_page_may_show_ours_in_a_frame(web: TestClient, locked: TestClient) -> None:
    for answer in (web.get("/"), web.get("/openapi.json"), locked.get("/")):
        assert answer.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_without_the_token_nothing_is_answered(locked: TestClient) -> None:
    for path in ("/", "/config", "/theme.css", "/textual-inversion/state", "/textual-inversion/cards", "/?token=", "/?token=open-sesamE"):
        assert locked.get(path).status_code == 401, path
    assert locked.post("/gradio_api/queue/join", json=EVENT).status_code == 401
    assert locked.post("/gradio_api/upload", files={"files": ("a.txt", b"x")}).status_code == 401
    assert locked.get("/textual-inversion/state?token=open-sesame").status_code == 401  # only the page's own address takes it


def test_the_address_with_the_token_opens_the_page_and_a_cookie_keeps_it_open(locked: TestClient) -> None:
    answer = locked.get("/?token=open-sesame")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert locked.get("/textual-inversion/state").status_code == 200
    locked.cookies.clear()
    assert locked.get("/textual-inversion/state").status_code == 401
    for scheme in ("Bearer", "bearer", "BEARER "):
        assert locked.get("/textual-inversion/state", headers={"authorization": f"{scheme} open-sesame"}).status_code == 200
    assert locked.get("/textual-inversion/state", headers={"authorization": "Basic open-sesame"}).status_code == 401


def test_an_old_token_in_the_address_does_not_shut_out_who_has_the_cookie(locked: TestClient) -> None:
    """As after a restart, where the bookmark has the token of before and the cookie is new."""
    locked.get("/?token=open-sesame")
    assert locked.get("/?token=old").status_code == 200


@pytest.mark.parametrize("shown", ["open-sesam", "open-sesame ", "", "é", "\udcff"])
def test_a_token_that_is_not_ours_is_refused(shown: str) -> None:
    assert not gates.Gate(None, "open-sesame")._known(shown)


def test_tokens_differ_and_are_long() -> None:
    assert len({gates.new_token() for _ in range(100)}) == 100
    assert len(gates.new_token()) >= 32


def test_a_certificate_that_cannot_be_used_is_said_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("no certificate", encoding="utf-8")
    for access in (
        gates.Access(certificate=tmp_path / "missing.pem"),
        gates.Access(certificate=tmp_path / "bad.pem"),
        gates.Access(key=tmp_path / "bad.pem"),
    ):
        with pytest.raises(ConfigError, match="--tls-cert"):
            access.tls_options()
    assert gates.Access().tls_options() == {}


def test_the_pages_address_has_the_token_and_the_scheme() -> None:
    assert gates.Access().page(7870) == "http://127.0.0.1:7870"
    assert gates.Access(True, "abc", Path("cert.pem")).page(1) == "https://127.0.0.1:1/?token=abc"
    assert (gates.Access().address, gates.Access(listen=True).address) == ("127.0.0.1", "0.0.0.0")


async def _ask(gate: gates.Gate, scope: dict[str, Any], bodies: Iterator[bytes]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(bodies), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await gate(scope, receive, send)
    return sent


def _posted(path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    own = (b"host", b"127.0.0.1:7870")
    return {"type": "http", "method": "POST", "path": path, "scheme": "http", "query_string": b"", "headers": [own, *headers]}


def answered(sent: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """What was sent; in a thread of its own, because a browser of another test may keep an event loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, sent).result()


def test_a_body_that_is_too_large_is_refused_by_its_length() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it came in")

    for length in (b"2000000000", b"-1", b"x"):
        sent = answered(_ask(gates.Gate(application), _posted("/gradio_api/upload", (b"content-length", length)), iter(())))
        assert sent[0]["status"] == 413, length


def test_a_body_without_a_length_ends_at_the_limit() -> None:
    read = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request":
            read.append(len(message["body"]))

    endless = iter(lambda: b"x" * 2**20, b"")
    answered(_ask(gates.Gate(application), _posted("/gradio_api/queue/join"), endless))
    assert sum(read) == gates.MAX_EVENT_BYTES


def test_websockets_are_closed() -> None:
    sent = answered(_ask(gates.Gate(None), {"type": "websocket", "path": "/queue/join", "headers": []}, iter(())))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_gradio_lets_no_foreign_file_in(tmp_path: Path) -> None:
    """The same program runs under gradio 3.41.2 and 4.40.0 with the other checks of the pages under every gradio."""
    import subprocess
    import sys

    program = Path(__file__).with_name("raw_events.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout
    assert ", 0 let in" in done.stdout
