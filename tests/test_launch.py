"""launch.py and install.py: what they decide and what they say. Nothing is installed here."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_under_test", ROOT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shared_launch() -> ModuleType:
    return load("launch")


@pytest.fixture
def launch(shared_launch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """launch.py with a folder of its own, so that the real .venv is never touched."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    venv = tmp_path / ".venv"
    for name, value in {"ROOT": tmp_path, "VENV": venv, "STAMP": venv / "installed.json", "LOG": venv / "install.log"}.items():
        monkeypatch.setattr(shared_launch, name, str(value))
    monkeypatch.delenv("TORCH_INDEX_URL", raising=False)
    return shared_launch


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def touch(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).touch()


# Which Python


@pytest.mark.parametrize("name", ["launch.py", "install.py"])
def test_parses_on_python_3_6(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"), feature_version=(3, 6))
    futures = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert futures == [], "from __future__ import annotations is a SyntaxError on 3.6"


def test_launcher_needs_the_standard_library_only() -> None:
    tree = ast.parse((ROOT / "launch.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names <= sys.stdlib_module_names


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 9, 18), (2, 7, 18)])
def test_old_python_is_told_what_is_needed(launch: ModuleType, version: tuple[int, ...]) -> None:
    problem = launch.python_problem(version, 2**63 - 1)
    assert ".".join(map(str, version)) in problem
    assert "3.10" in problem


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 13, 5), (4, 0, 0)])
def test_newer_python_is_fine(launch: ModuleType, version: tuple[int, ...]) -> None:
    assert launch.python_problem(version, 2**63 - 1) is None


def test_32_bit_python_is_refused(launch: ModuleType) -> None:
    assert "64-bit" in launch.python_problem((3, 12, 0), 2**31 - 1)


@pytest.mark.parametrize(("mac", "word"), [(("Darwin", "x86_64", "15.1"), "Intel"), (("Darwin", "arm64", "13.6"), "macOS 14")])
def test_mac_without_a_pytorch_build_is_refused(launch: ModuleType, mac: tuple[str, str, str], word: str) -> None:
    assert word in launch.mac_problem(*mac)


@pytest.mark.parametrize("machine", [("Darwin", "arm64", "14.0"), ("Linux", "x86_64", ""), ("Windows", "AMD64", "")])
def test_other_machines_are_fine(launch: ModuleType, machine: tuple[str, str, str]) -> None:
    assert launch.mac_problem(*machine) is None


def test_problem_ends_the_run_with_one_line(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch.sys, "version_info", (3, 9, 1, "final", 0))
    assert launch.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("Error: Python 3.9.1 is too old")


# Arguments


@pytest.mark.parametrize(("arguments", "command", "rest"), [
    ([], "serve", []),
    (["--port", "80"], "serve", ["--port", "80"]),
    (["serve", "--listen"], "serve", ["--listen"]),
    (["test", "-k", "x"], "test", ["-k", "x"]),
    (["demo", "--json"], "demo", ["--json"]),
])  # fmt: skip
def test_first_word_is_the_command(launch: ModuleType, arguments: list[str], command: str, rest: list[str]) -> None:
    assert launch.split_arguments(arguments) == (command, rest)


def test_serve_passes_its_options_on(launch: ModuleType) -> None:
    options = launch.serve_arguments(["--listen", "--no-browser", "--checkpoint", "my model.safetensors", "--other", "1"])
    expected = ["serve", "--port", "7870", "--listen", "--no-browser", "--checkpoint", "my model.safetensors", "--other", "1"]
    assert launch.serve_command(options) == expected


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", ""])
def test_what_is_no_port_exits_with_2(launch: ModuleType, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        launch.serve_arguments([f"--port={port}"])
    assert stopped.value.code == 2
    assert "1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "expected"), [
    ([], ["-X", "utf8", "-m", "textual_inversion.cli", "serve", "--port", "7870"]),
    (["demo", "--json"], ["-X", "utf8", "-m", "textual_inversion.cli", "demo", "--json"]),
    (["inspect", "a b.pt"], ["-X", "utf8", "-m", "textual_inversion.cli", "inspect", "a b.pt"]),
    (["test", "-k", "x"], ["-m", "pytest", "-k", "x"]),
])  # fmt: skip
def test_run_starts_what_was_asked_for(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: list[str]
) -> None:
    monkeypatch.chdir(launch.ROOT)
    monkeypatch.setattr(launch, "check_port", lambda host, port: None)
    extras: list[list[str]] = []
    monkeypatch.setattr(launch, "ensure_environment", extras.append)
    monkeypatch.setattr(launch, "start", lambda command: 0 if command == expected else pytest.fail(str(command)))
    assert launch.main(arguments) == 0
    assert extras == [["test"] if arguments[:1] == ["test"] else []]


def test_interrupt_is_quiet(launch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(extras: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "ensure_environment", interrupt)
    assert launch.main(["demo"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


# Port


def test_taken_port_names_a_free_one(launch: ModuleType, taken_port: int) -> None:
    with pytest.raises(launch.LaunchError, match="in use") as caught:
        launch.check_port("127.0.0.1", taken_port)
    found = re.search(r"--port (\d+)", str(caught.value))
    assert found is not None
    assert launch.port_error("127.0.0.1", int(found[1])) is None


def test_free_port_is_accepted_at_once_after_use(launch: ModuleType, taken_port: int) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        free = server.getsockname()[1]
    launch.check_port("127.0.0.1", free)
    assert launch.port_error("127.0.0.1", free) is None


def test_port_is_looked_at_before_anything_is_installed(launch: ModuleType, taken_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--port", str(taken_port)]) == 1
    assert f"Port {taken_port} is in use" in capsys.readouterr().err
    assert not os.path.exists(launch.VENV)


# PyTorch


def sources(launch: ModuleType, system: str, **facts: object) -> list[str]:
    known = {"nvidia": False, "index_url": None, "pip_configured": False, **facts}
    return [" ".join(source) for source in launch.torch_sources(system, **known)]


def test_nvidia_on_linux_takes_pypis_cuda_build_first(launch: ModuleType) -> None:
    for configured in (True, False):
        first, second = sources(launch, "Linux", nvidia=True, pip_configured=configured)
        assert first == f"torch==={launch.TORCH}"
        assert launch.PYTORCH_INDEX["cuda"] in second


def test_nvidia_on_windows_takes_pytorchs_cuda_index_first(launch: ModuleType) -> None:
    assert launch.PYTORCH_INDEX["cuda"] in sources(launch, "Windows", nvidia=True)[0]


def test_linux_without_nvidia_saves_the_cuda_download(launch: ModuleType) -> None:
    assert launch.PYTORCH_INDEX["cpu"] in sources(launch, "Linux")[0]
    assert sources(launch, "Linux")[-1] == f"torch=={launch.TORCH}"


def test_pips_own_configuration_is_respected(launch: ModuleType) -> None:
    assert sources(launch, "Linux", pip_configured=True) == [f"torch=={launch.TORCH}"]


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_elsewhere_pypis_build_is_the_right_one(launch: ModuleType, system: str) -> None:
    assert sources(launch, system) == [f"torch=={launch.TORCH}"]


@pytest.mark.parametrize("system", ["Linux", "Windows", "Darwin"])
@pytest.mark.parametrize("nvidia", [True, False])
def test_the_users_index_is_the_only_one(launch: ModuleType, system: str, nvidia: bool) -> None:
    (only,) = sources(launch, system, nvidia=nvidia, index_url="https://example.org/whl", pip_configured=True)
    assert "--index-url https://example.org/whl " in only


def test_a_cpu_build_is_not_accepted_with_an_nvidia_card(launch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(launch, "pip_install", lambda arguments: tried.append(arguments[-1]))
    monkeypatch.setattr(launch, "installed_torch", lambda: (f"{launch.TORCH}+cpu", False))
    monkeypatch.setattr(launch.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=""))
    with pytest.raises(launch.LaunchError, match="without CUDA"):
        launch.install_torch(nvidia=True)
    assert len(tried) == len(launch.torch_sources(launch.platform.system(), True, None, False))


def test_the_right_torch_is_left_alone(launch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "pip_install", lambda arguments: pytest.fail("nothing is missing"))
    for version, cuda, nvidia in ((launch.TORCH, True, True), (f"{launch.TORCH}+cpu", False, False)):
        monkeypatch.setattr(launch, "installed_torch", lambda found=(version, cuda): found)
        assert launch.install_torch(nvidia) is None


def test_nvidia_is_found_by_its_program(launch: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch.os.path, "exists", lambda path: False)
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    assert not launch.nvidia_present("Linux")
    monkeypatch.setattr(launch.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert launch.nvidia_present("Linux")
    assert not launch.nvidia_present("Darwin")


# Requirements


def test_requirements_are_those_of_pyproject(launch: ModuleType) -> None:
    tomllib = pytest.importorskip("tomllib")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    assert launch.required_packages(text, []) == project["dependencies"]
    assert launch.required_packages(text, ["test"]) == project["dependencies"] + project["optional-dependencies"]["test"]


def test_every_requirement_is_pinned_for_every_python(launch: ModuleType) -> None:
    markers = pytest.importorskip("packaging.requirements")
    pins = [
        markers.Requirement(line)
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    wanted = launch.required_packages((ROOT / "pyproject.toml").read_text(encoding="utf-8"), ["test"])
    for python in ("3.10", "3.11", "3.12", "3.13"):
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        for text in wanted:
            needed = markers.Requirement(text)
            if needed.name == "triton":  # builds of PyTorch for CUDA name the version that they need; a pin could contradict it
                continue
            named = [pin for pin in pins if pin.name.lower() == needed.name.lower()]
            found = [pin for pin in named if not pin.marker or pin.marker.evaluate(environment)]
            assert len(found) == 1, f"{needed.name} on Python {python}"
            assert needed.specifier.contains(str(found[0].specifier).removeprefix("=="))


def test_launcher_and_constraints_pin_the_same_torch(launch: ModuleType) -> None:
    assert f"torch=={launch.TORCH}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


# What went wrong


@pytest.mark.parametrize(("said", "word"), [
    ("WARNING: Retrying after connection broken by 'NewConnectionError(...)'\nERROR: No matching distribution", "internet"),
    ("pip._vendor.urllib3.exceptions.ReadTimeoutError: Read timed out.", "internet"),
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
    ("OSError: [WinError 112] There is not enough space on the disk", "disk is full"),
    ("WARNING: x\nERROR: No matching distribution found for torch==2.13.0\nhint: y", "No matching distribution found for torch==2.13.0"),
    ("", "no reason"),
])  # fmt: skip
def test_pips_failure_becomes_one_sentence(launch: ModuleType, said: str, word: str) -> None:
    sentence = launch.explain_pip(said)
    assert word in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_full_disk_is_told_before_the_installation(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_200_000_000}))
    monkeypatch.setattr(launch, "nvidia_present", lambda system: True)
    assert launch.main(["demo"]) == 1
    assert "1.2 GB free" in (said := capsys.readouterr().err)
    assert "10 GB" in said
    assert not os.path.exists(launch.VENV)


def test_enough_disk_is_no_problem(launch: ModuleType) -> None:
    assert launch.disk_problem(20 * 10**9, "cuda") is None
    assert launch.disk_problem(4 * 10**9, "cpu") is None


def test_disk_that_fills_up_later_is_told(launch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fill(key: str, nvidia: bool, extras: list[str]) -> None:
        raise OSError(launch.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(launch, "install", fill)
    assert launch.main(["demo"]) == 1
    assert "disk is full" in capsys.readouterr().err


# The stamp


def stamp(launch: ModuleType, **content: object) -> None:
    touch(launch.venv_python())
    Path(launch.STAMP).write_text(json.dumps(content), encoding="utf-8")


def test_second_start_asks_nobody(launch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp(launch, key=launch.requirements_key(launch.nvidia_present(launch.platform.system())), extras=["test"])
    monkeypatch.setattr(launch.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr(launch.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    launch.ensure_environment([])
    launch.ensure_environment(["test"])
    assert launch.is_ready("another key", []) is False


def test_all_tests_run_side_by_side_and_chosen_ones_as_asked(launch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(launch, "ensure_environment", lambda extras: None)
    monkeypatch.setattr(launch.os, "chdir", lambda folder: None)
    monkeypatch.setattr(launch, "start", lambda arguments: started.append(arguments) or 0)
    for rest in ([], ["-k", "prompts"]):
        assert launch.run(["test", *rest]) == 0
    assert started == [["-m", "pytest", *launch.ALL_TESTS], ["-m", "pytest", "-k", "prompts"]]


def test_tests_are_installed_only_when_asked_for(launch: ModuleType) -> None:
    stamp(launch, key="k", extras=[])
    assert launch.is_ready("k", [])
    assert not launch.is_ready("k", ["test"])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "k"}', '{"key": "k", "extras": 3}'])
def test_damaged_stamp_means_install_again(launch: ModuleType, content: str) -> None:
    stamp(launch)
    Path(launch.STAMP).write_text(content, encoding="utf-8")
    assert not launch.is_ready("k", ["test"])


def test_key_follows_the_requirements_and_the_card(launch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    before = launch.requirements_key(False)
    assert launch.requirements_key(False) == before
    assert launch.requirements_key(True) != before
    pins = Path(launch.ROOT) / "constraints.txt"
    pins.write_bytes(pins.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert launch.requirements_key(False) == before, "line endings of a checkout do not matter"
    pins.write_text("torch==1.0\n", encoding="utf-8")
    assert launch.requirements_key(False) != before


def test_torn_packages_are_installed_again(launch: ModuleType, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole-1.dist-info", tmp_path / "torn-1.dist-info"
    whole.mkdir()
    torn.mkdir()
    (whole / "RECORD").touch()
    (torn / "METADATA").touch()
    launch.drop_torn_packages(str(tmp_path))
    assert whole.exists()
    assert not torn.exists()


def test_environment_leads_nowhere_else(launch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example.org/simple")
    environment = launch.clean_environment()
    assert not {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET"} & set(environment)
    assert environment["PYTHONNOUSERSITE"] == "1"
    assert environment["PIP_INDEX_URL"] == "https://mirror.example.org/simple"


# As a program


def test_help_needs_no_installation_and_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    for word in ("--port", "--listen", "--no-browser", "--checkpoint", "test", "demo", "TORCH_INDEX_URL"):
        assert word in done.stdout


def test_install_script_is_silent_where_nothing_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    load("install").main()
    assert capsys.readouterr().out == ""


def test_install_script_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("install")
    monkeypatch.setattr(module, "NEEDED", {"no_such_module": "SomePackage", "json": "json"})
    module.main()
    assert "misses SomePackage;" in capsys.readouterr().out
