"""The addresses that the page's script reads: guarded, without side effects, and only what they are for."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from textual_inversion.app.job import JobKind
from textual_inversion.errors import CheckpointError, ConfigError
from textual_inversion.hosts.fake import FakeEngine, FakeHost
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.events import Message, PreviewDrawn
from textual_inversion.ui.routes import add_routes, addressed_to_us

STATE = "/textual-inversion/state"


def client(engine: FakeEngine, **app_attributes: object) -> TestClient:
    app = Starlette()
    for name, value in app_attributes.items():
        setattr(app, name, value)
    add_routes(app, engine)
    return TestClient(app, base_url="http://localhost:7860")


def run(engine: FakeEngine, tmp_path: Path) -> None:
    engine.create(NewEmbedding("cat"))
    config = TrainingConfig(
        "cat", str(engine.host.folders().pictures), steps=4, width=64, height=64, preview_every=2, log_dir=str(tmp_path / "log")
    )
    engine.job.start(JobKind.TRAIN, "cat", lambda listener, stop: engine.train(config, listener, stop), tmp_path / "log")
    assert engine.job.wait(10)


def test_the_state_is_whole_once_and_short_while_nothing_changes(engine: FakeEngine, tmp_path: Path) -> None:
    run(engine, tmp_path)
    web = client(engine)
    whole = web.get(STATE).json()
    assert len(whole["points"]) == 4
    short = web.get(f"{STATE}?since={whole['job']}-{whole['version']}").json()
    assert "points" not in short
    assert short["version"] == whole["version"]
    assert "points" in web.get(f"{STATE}?since={whole['job']}-1").json()


def test_a_message_about_a_file_whose_name_is_no_text_is_sent(engine: FakeEngine, tmp_path: Path) -> None:
    engine.job.start(JobKind.TRAIN, "cat", lambda listener, stop: listener(Message("caf\udce9.png is damaged")), tmp_path / "log")
    assert engine.job.wait(10)
    assert "damaged" in client(engine).get(STATE).text


@pytest.mark.parametrize(
    ("header", "ours"),
    [
        ("localhost:7860", True),
        ("127.0.0.1", True),
        ("192.168.1.7:7860", True),
        ("[::1]:7860", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:80", False),
        ("localhost.evil.example", False),
        ("", False),
        ("[bad", False),
    ],
)
def test_only_our_own_names_are_answered(engine: FakeEngine, header: str, ours: bool) -> None:
    assert addressed_to_us(header) is ours
    assert client(engine).get(STATE, headers={"host": header}).status_code == (200 if ours else 400)


def test_a_name_that_is_allowed_is_answered(engine: FakeEngine) -> None:
    app = Starlette()
    add_routes(app, engine, allowed_hosts=["Studio.example"])
    assert TestClient(app, base_url="http://studio.example").get(STATE).status_code == 200


def test_gradios_login_is_required_where_there_is_one(engine: FakeEngine) -> None:
    web = client(engine, auth={"user": "secret"}, tokens={"token-1": "user"})
    assert web.get(STATE).status_code == 401
    assert web.get(STATE, headers={"cookie": "access-token-abc=wrong"}).status_code == 401
    assert web.get(STATE, headers={"cookie": "other=token-1"}).status_code == 401
    assert web.get(STATE, headers={"cookie": "access-token-abc=token-1"}).status_code == 200


def test_nothing_but_get_is_answered(engine: FakeEngine) -> None:
    web = client(engine)
    for name in ("state", "picture", "cards", "card"):
        assert web.post(f"/textual-inversion/{name}").status_code == 405


def test_previews_are_served_and_nothing_else_of_the_folder(engine: FakeEngine, tmp_path: Path) -> None:
    run(engine, tmp_path)
    web = client(engine)
    job = engine.job.id
    (tmp_path / "log" / "secret.png").write_bytes(b"x")
    good = web.get("/textual-inversion/picture", params={"job": job, "file": "cat-4.png"})
    assert (good.status_code, good.headers["content-type"]) == (200, "image/png")
    for file in ("secret.png", "../log/cat-4.png", "/etc/passwd", ""):
        assert web.get("/textual-inversion/picture", params={"job": job, "file": file}).status_code == 404
    assert web.get("/textual-inversion/picture", params={"job": "0", "file": "cat-4.png"}).status_code == 404


@pytest.mark.parametrize("name", ["outside.png", "text.txt"])
def test_a_preview_outside_the_folder_or_of_another_kind_is_not_served(engine: FakeEngine, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(b"x")
    (folder / "text.txt").write_text("x")
    (folder / "outside.png").symlink_to(tmp_path / "outside.png")
    engine.job.start(JobKind.TRAIN, "cat", lambda listener, stop: listener(PreviewDrawn(1, str(folder / name), "", 0)), folder)
    assert engine.job.wait(5)
    assert client(engine).get("/textual-inversion/picture", params={"job": engine.job.id, "file": name}).status_code == 404


def test_cards_and_their_pictures(engine: FakeEngine, tmp_path: Path) -> None:
    engine.create(NewEmbedding("cat"))
    (engine.host.folders().embeddings / "cat.png").write_bytes((engine.host.folders().pictures / "0.png").read_bytes())
    web = client(engine)
    answer = web.get("/textual-inversion/cards?rescan=1").json()
    assert answer["count"] == 1
    assert 'data-name="cat"' in answer["html"]
    assert web.get("/textual-inversion/card", params={"name": "cat"}).status_code == 200
    for name in ("dog", "../cat", ""):
        assert web.get("/textual-inversion/card", params={"name": name}).status_code == 404


def test_adding_twice_replaces_and_comes_before_a_catch_all(engine: FakeEngine) -> None:
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    app = Starlette(routes=[Route("/{path:path}", lambda request: PlainTextResponse("page"))])
    add_routes(app, engine)
    add_routes(app, engine)
    assert sum(getattr(route, "path", "") == STATE for route in app.router.routes) == 1
    assert TestClient(app, base_url="http://localhost").get(STATE).json()["phase"] == "idle"


def test_the_whole_standalone_page_refuses_foreign_names(engine: FakeEngine) -> None:
    from textual_inversion.hosts.standalone import build_app

    web = TestClient(build_app(engine, engine.host))
    assert web.get("/", headers={"host": "evil.example"}).status_code == 400
    assert web.get("/config", headers={"host": "evil.example"}).status_code == 400
    page = web.get("/", headers={"host": "localhost"})
    assert page.status_code == 200
    assert "window.textualInversion" in page.text


def test_a_foreign_page_cannot_post_through_the_browser(engine: FakeEngine) -> None:
    from textual_inversion.hosts.standalone import build_app

    web = TestClient(build_app(engine, engine.host), base_url="http://127.0.0.1:7870")

    def upload(**headers: str) -> int:
        return web.post("/gradio_api/upload", files={"files": ("a.png", b"x")}, headers=headers).status_code

    assert [upload(origin=origin) for origin in ("http://evil.example", "http://127.0.0.1:8000", "null")] == [403, 403, 403]
    assert [upload(origin="http://127.0.0.1:7870"), upload()] == [200, 200]


def test_a_host_without_a_checkpoint_still_answers(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: FakeHost) -> SimpleNamespace:
        raise CheckpointError("There is none.")

    monkeypatch.setattr(FakeHost, "checkpoint", none)
    assert client(engine).get(STATE).json()["checkpoint"] == ""


def test_a_server_that_ends_keeps_what_a_running_job_has_learned(engine: FakeEngine, tmp_path: Path, serve: Callable[[Any], Any]) -> None:
    engine.pace = 0.01
    engine.create(NewEmbedding("cat"))
    with serve(engine):
        config = TrainingConfig("cat", str(engine.host.folders().pictures), steps=10_000, log_dir=str(tmp_path))
        engine.job.start(JobKind.TRAIN, "cat", lambda listener, stop: engine.train(config, listener, stop), tmp_path)
        while engine.job.snapshot()["step"] < 2:
            time.sleep(0.01)
    assert engine.job.snapshot()["phase"] == "interrupted"
    assert 2 <= (engine.cards()[0].description.step or 0) < 10_000


def test_a_port_that_is_taken_is_said() -> None:
    from textual_inversion.hosts.standalone.app import check_port

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="--port"):
            check_port("127.0.0.1", taken.getsockname()[1])
