"""The addresses for programs, over a real engine and an app that is guarded like the WebUI's."""

from __future__ import annotations

import re
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBasic
from starlette.testclient import TestClient

from tests.webui.conftest import ROOT, Host, write
from textual_inversion.settings.training import TrainingConfig

API = "/textual-inversion/v1"
PICTURES = str(ROOT / "textual_inversion" / "assets" / "demo" / "pictures")
SMALL = {"images": PICTURES, "width": 64, "height": 64, "batch_size": 1}


def app_with_api(*guards: Any) -> FastAPI:
    app = FastAPI()
    app.add_api_route("/sdapi/v1/embeddings", lambda: {}, dependencies=list(guards))
    return app


@pytest.fixture
def web(webui: SimpleNamespace, host: Host) -> TestClient:
    from textual_inversion.hosts.webui.api import add_api

    app = app_with_api()
    assert add_api(app, host.engine)
    return TestClient(app)


def test_make_train_follow_list_and_inspect(web: TestClient, host: Host) -> None:
    made = web.post(f"{API}/create", json={"name": "shape", "initializer_text": "red shape"})
    assert made.json() == {"name": "shape", "file": "shape.safetensors", "num_vectors": 2}
    answer = web.post(f"{API}/train", json={"name": "shape", "steps": 2, "learning_rate": 0.01, "wait": True, **SMALL}).json()
    assert answer["state"]["phase"] == "finished", answer
    state = web.get(f"{API}/state", params={"job": answer["job"], "points": True}).json()
    assert [point[0] for point in state["points"]] == [1, 2]
    assert web.get(f"{API}/state").json()["points"] == []
    assert [entry["step"] for entry in web.get(f"{API}/embeddings").json()] == [2]
    inspected = web.get(f"{API}/inspect", params={"name": "shape"}).json()
    assert inspected["initializer_text"] == "red shape"
    assert inspected["hash"] == inspected["sha256"][:12]
    assert (host.folders().outputs / "training" / "shape").is_dir()


def test_a_job_is_followed_and_interrupted_by_its_id(web: TestClient) -> None:
    web.post(f"{API}/create", json={"name": "long"})
    job = web.post(f"{API}/train", json={"name": "long", "steps": 100_000, **SMALL}).json()["job"]
    assert web.post(f"{API}/train", json={"name": "long", **SMALL}).status_code == 409
    assert web.post(f"{API}/create", json={"name": "long", "overwrite": True}).status_code == 409
    assert web.post(f"{API}/interrupt", json={"job": "other"}).status_code == 409
    assert web.post(f"{API}/interrupt", json={"job": job}).json() == {"interrupted": True}
    while web.get(f"{API}/state").json()["phase"] != "interrupted":
        pass
    assert web.post(f"{API}/interrupt", json={}).json() == {"interrupted": False}
    assert web.get(f"{API}/state?job=other").status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("create", {"name": "a/b"}, 400, "path"),
        ("create", {"name": "x", "num_vectors": 76}, 400, "75"),
        ("create", {"name": "x", "num_vectors": 1.5}, 422, "num_vectors"),
        ("create", {"name": "there"}, 409, "there.safetensors"),
        ("create", {"name": "x", "colour": "red"}, 422, "colour"),
        ("train", {"name": "nobody", "images": PICTURES}, 404, "create it first"),
        ("train", {"name": "there", "images": "/no/such"}, 400, "/no/such"),
        ("train", {"name": "there", "images": PICTURES, "learning_rate": "fast"}, 400, "fast"),
        ("train", {"name": "there", "images": PICTURES, "steps": "5"}, 422, "steps"),
        ("train", {"name": "there", "images": PICTURES, "log_dir": "../elsewhere"}, 400, "log folder"),
        ("train", {"name": "there", "images": PICTURES, "log_dir": "/tmp"}, 400, "log folder"),
        ("train", {"name": "there", "images": PICTURES, "template": "../../etc/passwd"}, 400, "passwd"),
        ("train", {"name": "wide", "images": PICTURES}, 400, "768"),
        ("train", {"images": PICTURES}, 422, "name"),
    ],
)
def test_what_is_wrong_is_one_sentence(web: TestClient, host: Host, path: str, body: Any, status: int, said: str) -> None:
    write(host.folders().embeddings, "there")
    write(host.folders().embeddings, "wide", width=768)
    answer = web.post(f"{API}/{path}", json=body)
    assert answer.status_code == status, answer.json()
    assert said in str(answer.json()["detail"])
    if status != 422:
        assert isinstance(answer.json()["detail"], str)
    assert not (host.root / "elsewhere").exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/../../secret.safetensors", "~/x", ".", "", "sub", "\0"])
def test_only_files_of_the_folder_are_inspected(web: TestClient, host: Host, name: str) -> None:
    write(host.root, "secret")
    write(host.folders().embeddings, "sub/inside")
    assert web.get(f"{API}/inspect", params={"name": name}).status_code == 404
    assert web.get(f"{API}/inspect", params={"name": str(host.root / "secret.safetensors")}).status_code == 404
    assert web.get(f"{API}/inspect", params={"name": "sub/inside.safetensors"}).json()["name"] == "inside"


def test_what_cannot_be_read_is_listed_with_its_reason(web: TestClient, host: Host) -> None:
    (host.folders().embeddings / "broken.pt").write_bytes(b"rubbish" * 10)
    (listed,) = web.get(f"{API}/embeddings").json()
    assert not listed["usable"]
    assert listed["reason"]
    assert web.get(f"{API}/inspect?name=broken").json()["sha256"] == ""


def test_a_file_whose_name_is_in_no_encoding_is_listed_and_inspected(web: TestClient, host: Host) -> None:
    write(host.folders().embeddings, "c\udcffat")
    (listed,) = web.get(f"{API}/embeddings").json()
    assert listed["file"] == "c\\udcffat.safetensors"
    assert web.get(f"{API}/inspect", params={"name": listed["file"]}).json()["num_vectors"] == 1


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("train", {"embedding_name": "a", "data_root": PICTURES, "learn_rate": 0.005}, "embedding_name is called name here"),
        ("train", {"name": "a", "images": PICTURES, "create_image_every": 5}, "create_image_every is called preview_every here"),
        ("train", {"name": "a", "images": PICTURES, "preview_from_txt2img": True}, "preview_from_txt2img is no setting here"),
        ("create", {"name": "a", "init_text": "cat", "num_vectors_per_token": 2}, "num_vectors_per_token is called num_vectors here"),
    ],
)
def test_names_of_the_webuis_own_routes_are_refused_with_ours(web: TestClient, host: Host, path: str, body: Any, said: str) -> None:
    answer = web.post(f"{API}/{path}", json=body)
    assert answer.status_code == 422
    (told,) = answer.json()["detail"]
    assert said in told["msg"]
    assert not list(host.folders().embeddings.iterdir())


def test_what_the_webuis_names_are_called_here_exists(webui: SimpleNamespace) -> None:
    from textual_inversion.hosts.webui import api_models

    known = {field.name for field in fields(TrainingConfig)} | {"initializer_text", "num_vectors", "overwrite", ""}
    assert set(api_models._THEIR_NAMES.values()) <= known
    assert not known & set(api_models._THEIR_NAMES)


def test_every_setting_is_described_for_programs(web: TestClient) -> None:
    described = web.get("/openapi.json").json()
    settings = described["components"]["schemas"]["TrainRequest"]["properties"]
    assert set(settings) == {field.name for field in fields(TrainingConfig)} | {"wait"}
    assert all(setting["description"] for setting in settings.values())
    operations = [operation for path, item in described["paths"].items() if path.startswith(API) for operation in item.values()]
    assert len(operations) == 6
    assert all(operation["summary"] and operation["description"] for operation in operations)


def test_the_webuis_guard_guards_ours(webui: SimpleNamespace, host: Host) -> None:
    from textual_inversion.hosts.webui.api import add_api

    app = app_with_api(Depends(HTTPBasic()))
    webui.shared.cmd_opts.api_auth = "ann:sesame"
    assert add_api(app, host.engine)
    web = TestClient(app)
    for method, path in (("get", "state"), ("get", "embeddings"), ("get", "inspect?name=x"), ("post", "create"), ("post", "interrupt")):
        assert getattr(web, method)(f"{API}/{path}").status_code == 401
    assert web.get(f"{API}/state", auth=("ann", "sesame")).status_code == 200


def test_without_the_webuis_api_or_its_guard_there_is_none(webui: SimpleNamespace, host: Host) -> None:
    from textual_inversion.hosts.webui.api import add_api

    plain = FastAPI()
    assert not add_api(plain, host.engine)  # type: ignore[arg-type]
    webui.shared.cmd_opts.api_auth = "ann:sesame"
    unguarded = app_with_api()
    assert not add_api(unguarded, host.engine)  # type: ignore[arg-type]
    for app in (plain, unguarded):
        assert TestClient(app).get(f"{API}/state").status_code == 404


def test_adding_twice_leaves_one_of_each(webui: SimpleNamespace, host: Host) -> None:
    from textual_inversion.hosts.webui.api import add_api

    app = app_with_api()
    for _ in range(2):
        assert add_api(app, host.engine)
    once = app_with_api()
    add_api(once, host.engine)  # type: ignore[arg-type]
    assert len(app.routes) == len(once.routes)


def test_the_document_names_every_address_and_model_field() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for path in ("create", "train", "state", "interrupt", "embeddings", "inspect"):
        assert f"{API}/{path}" in text
    assert re.search(r"--api-auth", text)
