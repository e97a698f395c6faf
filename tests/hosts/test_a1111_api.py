"""The addresses under /textual-inversion/v1/ in a real A1111."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.conftest import ROOT, WebUI, start_a1111, stop

pytestmark = pytest.mark.hosts

API = "/textual-inversion/v1"
PICTURES = str(ROOT / "textual_inversion" / "assets" / "demo" / "pictures")
SMALL = {"images": PICTURES, "width": 64, "height": 64, "batch_size": 1, "learning_rate": 0.01}


def made(webui: WebUI, name: str, **values: Any) -> Any:
    status, answer = webui.ask("POST", f"{API}/create", {"name": name, "initializer_text": "red shape", **values})
    assert status == 200, answer
    return answer


def test_an_embedding_is_made_trained_and_known_to_the_host(a1111: WebUI) -> None:
    assert made(a1111, "api-made") == {"name": "api-made", "file": "api-made.safetensors", "num_vectors": 2}
    assert "api-made" in a1111.get("/sdapi/v1/embeddings")["loaded"]
    before = a1111.get(f"{API}/inspect", name="api-made")
    answer = a1111.post(f"{API}/train", name="api-made", steps=6, wait=True, log_dir="from-api", copy_every=3, **SMALL)
    assert answer["state"]["phase"] == "finished", answer
    assert answer["state"]["step"] == 6
    assert [copy["step"] for copy in answer["state"]["copies"]] == [0, 3, 6]
    assert list((a1111.data / "textual_inversion" / "from-api" / "api-made").iterdir())
    after = a1111.get(f"{API}/inspect", name="api-made.safetensors")
    assert after["step"] == 6
    assert after["sha256"] != before["sha256"]
    listed = {entry["name"]: entry for entry in a1111.get(f"{API}/embeddings")}
    assert listed["api-made"]["usable"]
    assert a1111.get("/sdapi/v1/embeddings")["loaded"]["api-made"]["step"] == 6
    state = a1111.get(f"{API}/state", job=answer["job"], points=True)
    assert [point[0] for point in state["points"]] == [1, 2, 3, 4, 5, 6]


def test_a_job_is_followed_and_interrupted(a1111: WebUI) -> None:
    made(a1111, "api-long")
    answer = a1111.post(f"{API}/train", name="api-long", steps=100_000, **SMALL)
    job = answer["job"]
    try:
        assert a1111.get(f"{API}/state", job=job)["phase"] in ("starting", "working")
        assert a1111.ask("POST", f"{API}/train", {"name": "api-long", "steps": 9, **SMALL})[0] == 409
        assert a1111.ask("POST", f"{API}/create", {"name": "api-long", "overwrite": True})[0] == 409
        assert a1111.ask("POST", f"{API}/interrupt", {"job": "another"})[0] == 409
    finally:
        assert a1111.post(f"{API}/interrupt", job=job) == {"interrupted": True}
    for _ in range(300):
        if (state := a1111.get(f"{API}/state"))["phase"] == "interrupted":
            break
    assert state["phase"] == "interrupted"
    assert a1111.post(f"{API}/interrupt") == {"interrupted": False}
    assert a1111.ask("GET", f"{API}/state?job=another")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "create", {"name": "../out"}, 400, "path"),
        ("POST", "create", {"name": "x", "num_vectors": 76}, 400, "75"),
        ("POST", "create", {"name": "x", "vectors": 2}, 422, "vectors"),
        ("POST", "train", {"name": "nobody", "images": PICTURES}, 404, "create it first"),
        ("POST", "train", {"name": "x", "images": "/no/such/folder"}, 400, "no"),
        ("POST", "train", {"name": "x", "images": PICTURES, "width": 63}, 400, "Width"),
        ("POST", "train", {"name": "x", "images": PICTURES, "log_dir": "../.."}, 400, "log folder"),
        ("POST", "train", {"name": "x", "images": PICTURES, "log_dir": "/tmp"}, 400, "log folder"),
        ("POST", "train", {"name": "x", "images": PICTURES, "template": "../../../etc/passwd"}, 400, "passwd"),
        ("POST", "train", {"name": "x", "images": PICTURES, "stepz": 3}, 422, "stepz"),
        ("POST", "train", {"name": "x", "images": PICTURES, "steps": "many"}, 422, "steps"),
        ("GET", "inspect?name=../config.json", None, 404, "config.json"),
        ("GET", "inspect?name=/etc/passwd", None, 404, "passwd"),
        ("GET", "inspect", None, 422, "name"),
        ("GET", "interrupt", None, 405, ""),
    ],
)
def test_what_is_wrong_is_told(a1111: WebUI, method: str, path: str, body: Any, status: int, said: str) -> None:
    told, answer = a1111.ask(method, f"{API}/{path}", body)
    assert told == status, answer
    assert said in str(answer.get("detail", ""))


def test_every_address_and_setting_is_described(a1111: WebUI) -> None:
    described = a1111.get("/openapi.json")
    ours = {path: item for path, item in described["paths"].items() if path.startswith(f"{API}/")}
    assert set(ours) == {f"{API}/{name}" for name in ("create", "train", "state", "interrupt", "embeddings", "inspect")}
    assert all(operation["summary"] and operation["description"] for item in ours.values() for operation in item.values())
    for model in ("TrainRequest", "CreateRequest", "StateAnswer", "InspectAnswer"):
        settings = described["components"]["schemas"][model]["properties"]
        assert all(setting.get("description") for setting in settings.values()), model
    assert f"{API.rsplit('/', 1)[0]}/state" not in described["paths"]  # the page's own, which is no part of this


def test_the_hosts_password_guards_all_of_it(a1111: WebUI, tmp_path: Path) -> None:
    if not os.environ.get("A1111_DIR"):
        pytest.skip("no A1111")
    process, guarded = start_a1111(tmp_path, "--api-auth", "ann:sesame,bob:tata")
    try:
        for method, path in (("GET", "state"), ("GET", "embeddings"), ("GET", "inspect?name=x"), ("POST", "create"), ("POST", "interrupt")):
            body = {} if method == "POST" else None
            assert guarded.ask(method, f"{API}/{path}", body)[0] == 401
            assert guarded.ask(method, f"{API}/{path}", body, auth=("ann", "wrong"))[0] == 401
            assert guarded.ask(method, f"{API}/{path}", body, auth=("ann", "sesame"))[0] in (200, 404, 422)
    finally:
        stop(process)
