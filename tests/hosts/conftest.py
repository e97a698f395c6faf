"""Real WebUIs for tests, started once, in a data folder of their own: nothing is written into theirs.

`A1111_DIR`, `FORGE_DIR` and `REFORGE_DIR` are the folders of WebUIs that work, A1111 with its tiny checkpoint
(docs/tiny-checkpoint.md) in its models folder; `A1111_PYTHON` and so on their interpreters, where those are not in their `venv`.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import write_checkpoint
from textual_inversion.diffusion.clip import CLIPConfig
from textual_inversion.diffusion.unet import UNetConfig
from textual_inversion.diffusion.vae import VAEConfig

pytest.register_assert_rewrite("tests.hosts.a1111_browser", "tests.hosts.forge_rows")

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 240
_ON_THE_PROCESSOR = "--skip-prepare-environment --skip-torch-cuda-test --no-download-sd-model"


@dataclass(frozen=True)
class Program:
    """A WebUI: the variable that names its folder, its arguments, and what it says once it is up."""

    name: str
    variable: str
    arguments: str
    ready: tuple[str, ...]

    def home(self) -> Path:
        """Its folder; skips the test where none is named."""
        if not os.environ.get(self.variable):
            pytest.skip(f"{self.variable} does not name the folder of {self.name}")
        return Path(os.environ[self.variable])

    def python(self) -> str:
        return os.environ.get(self.variable.replace("_DIR", "_PYTHON")) or str(self.home() / "venv" / "bin" / "python")


A1111 = Program(
    "A1111",
    "A1111_DIR",
    f"{_ON_THE_PROCESSOR} --use-cpu all --no-half --precision full --no-half-vae",
    ("Startup time:", "Model loaded in"),
)
FORGE = Program("Forge", "FORGE_DIR", f"{_ON_THE_PROCESSOR} --skip-version-check --always-cpu", ("Startup time:",))
REFORGE = Program("reForge", "REFORGE_DIR", f"{_ON_THE_PROCESSOR} --skip-version-check --always-cpu", ("Startup time:",))


@dataclass
class WebUI:
    """A WebUI that runs: where it answers, where its data lie, and what it said."""

    port: int
    data: Path
    log: Path
    auth: tuple[str, str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **query: Any) -> Any:
        return self.ask("GET", f"{path}?{urllib.parse.urlencode(query)}" if query else path)[1]

    def post(self, path: str, **body: Any) -> Any:
        return self.ask("POST", path, body)[1]

    def ask(self, method: str, path: str, body: Any = None, auth: tuple[str, str] | None = None) -> tuple[int, Any]:
        """Status and answer, read as JSON where it is some."""
        request = urllib.request.Request(self.url + path, method=method, headers={"Content-Type": "application/json"})
        request.data = None if body is None else json.dumps(body).encode()
        if user := auth or self.auth:
            request.add_header("Authorization", "Basic " + base64.b64encode(":".join(user).encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, _read(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _read(error.read())


def _read(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_a1111(data: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], WebUI]:
    """Start A1111 with the models in its own folder; see `start`."""
    return start(A1111, data, "--models-dir", str(A1111.home() / "models"), *arguments)


def start(program: Program, data: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], WebUI]:
    """Start a WebUI over `data`, with this repository and the tests' own extension in it, and wait until it answers."""
    extensions = data / "extensions"
    extensions.mkdir(parents=True, exist_ok=True)
    for name, folder in {
        "textual-inversion": ROOT,
        "zz-test-report": ROOT / "tests" / "hosts" / "extension",
    }.items():
        if not (extensions / name).exists():
            (extensions / name).symlink_to(folder, target_is_directory=True)
    port, log = free_port(), data / "log.txt"
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "SD_WEBUI_RESTARTING": "1"}
    environment = {
        "TEST_TIME_CALLBACKS": "1",
        **os.environ,
        **offline,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "COMMANDLINE_ARGS": "",
    }
    command = [program.python(), "launch.py", *program.arguments.split(), "--data-dir", str(data)]
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [*command, "--api", "--port", str(port), *arguments], cwd=program.home(), env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    end = time.monotonic() + START_SECONDS
    while not all(line in (said := log.read_text(encoding="utf-8", errors="replace")) for line in program.ready):
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"{program.name} did not start:\n{said[-4000:]}")
        time.sleep(0.3)
    return process, WebUI(port, data, log)


@pytest.fixture(scope="session")
def a1111(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A1111 with this extension; its embeddings folder is `data / "embeddings"`."""
    A1111.home()
    data = tmp_path_factory.mktemp("a1111")
    (data / "embeddings").mkdir()
    (data / "styles.csv").write_text('name,prompt,negative_prompt\nours,"{prompt}, <cat:1.2>",<my-cat:0.7>\n', encoding="utf-8")
    process, webui = start_a1111(data)
    yield webui
    stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a WebUI that `start` has started."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


#: Forge and reForge know models by their shapes, of which a UNet of two levels has enough.
SHORT_UNET = UNetConfig(channel_mult=(1, 2), num_res_blocks=(1, 1), transformer_depth=(1, 0))


@pytest.fixture(scope="session")
def short_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of random weights (0.6 GB) that Forge and reForge take for SD1.5; `SHORT_CHECKPOINT` names one from before."""
    if made := os.environ.get("SHORT_CHECKPOINT"):
        yield Path(made)
        return
    path = tmp_path_factory.mktemp("checkpoint") / "short.safetensors"
    yield write_checkpoint(path, unet=SHORT_UNET, vae=VAEConfig(), clip=CLIPConfig(), dtype=torch.float16)
    path.unlink()  # pytest keeps the folders of its last runs


@contextmanager
def running(program: Program, data: Path, checkpoint: Path, *arguments: str) -> Iterator[WebUI]:
    """Forge or reForge over `data`, with `checkpoint` as `short` and as `other` in `data / "models"`."""
    home = program.home()
    checkpoints = data / "models" / "Stable-diffusion"
    for folder in (checkpoints, data / "models" / "VAE", data / "embeddings"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("short", "other"):
        if not (checkpoints / f"{name}.safetensors").exists():
            (checkpoints / f"{name}.safetensors").symlink_to(checkpoint)
    if not (data / "config.json").exists():  # previews while drawing would ask for a model that is not there
        settings = {"live_previews_enable": False, "sd_model_checkpoint": "short.safetensors"}
        (data / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    served = ("--gradio-allowed-path", str(home)) if program is FORGE else ()
    process, webui = start(program, data, *served, *arguments)
    try:
        yield webui
    finally:
        stop(process)


def _filled(data: Path) -> Path:
    from tests.hosts import forge_rows

    forge_rows.fill(data)
    return data


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[WebUI]:
    """Forge with this extension."""
    FORGE.home()  # before a checkpoint is made
    with running(FORGE, _filled(tmp_path_factory.mktemp("forge")), request.getfixturevalue("short_checkpoint")) as webui:
        yield webui


@pytest.fixture(scope="session")
def reforge(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[WebUI]:
    """reForge with this extension."""
    REFORGE.home()  # before a checkpoint is made
    with running(REFORGE, _filled(tmp_path_factory.mktemp("reforge")), request.getfixturevalue("short_checkpoint")) as webui:
        yield webui
