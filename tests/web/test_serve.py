"""The standalone WebUI as a program of its own: its end by a signal, and https."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`serve` with its temporary files in `folder`; the process and the line that tells the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "textual_inversion.cli", "serve", "--port", str(port), "--no-browser", "--data", str(folder / "data")]
    (folder / "tmp").mkdir()
    surroundings = {key: value for key, value in os.environ.items() if key != "GRADIO_TEMP_DIR"} | {"TMPDIR": str(folder / "tmp")}
    process = subprocess.Popen(
        [*command, *arguments], cwd=ROOT, env=surroundings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "The page is at" in line), "")
        yield process, line
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_the_folder_of_uploads_goes_with_the_program(sent: signal.Signals, tmp_path: Path) -> None:
    with served(tmp_path) as (process, line):
        assert "http://127.0.0.1" in line
        assert list((tmp_path / "tmp").glob("textual-inversion-*"))
        process.send_signal(sent)
        process.wait(60)
    assert not list((tmp_path / "tmp").glob("textual-inversion-*"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_https(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
        *subject,
    ]
    subprocess.run(made, check=True, capture_output=True)
    with served(tmp_path, "--tls-cert", str(certificate), "--tls-key", str(key)) as (_, line):
        address = line.split("The page is at ")[1].split()[0]
        assert address.startswith("https://")
        with urllib.request.urlopen(address, context=ssl.create_default_context(cafile=str(certificate)), timeout=60) as answer:
            assert answer.status == 200
            assert "Textual Inversion" in answer.read().decode()
