"""Only regular files are opened: a pipe, a device, a socket or a folder in a file's place is an error at once, in every reader."""

from __future__ import annotations

import ast
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from textual_inversion.errors import ConfigError, DatasetError, EmbeddingError, PromptError
from textual_inversion.files import open_regular, read_regular, sha256_of
from textual_inversion.pictures.captions import MOST_CAPTION_BYTES, caption_bytes
from textual_inversion.prompts.templates import read_template

PACKAGE = Path(__file__).resolve().parents[1] / "textual_inversion"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the system has no pipes and devices among its files")
_OPENERS = ("open", "io.open", "np.load", "np.fromfile")
_MODES = ("r", "rb", "a", "ab", "w", "wb")  # "x" makes a new file
OURS = {  # modules that open only files of the project, or files that they have just written
    "demo/run.py",
    "formats/containers/picture_file.py",
    "hosts/fake.py",
    "hosts/standalone/app.py",
    "hosts/tiny_clip.py",
    "prompts/tokenizer.py",
}


@pytest.fixture(params=["pipe", "socket", "zero", "folder", "loop", "missing"])
def no_file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path whose file is none, with an ending that every reader takes."""
    path = tmp_path / "x.txt"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("x.txt")
            yield path
        return
    elif request.param == "zero":
        path.symlink_to("/dev/zero")
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "loop":
        path.symlink_to(path)
    yield path


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """What `function` raises or returns; a test fails where it hangs, and no thread is waited for."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(function())
        except Exception as error:  # noqa: BLE001  the test looks at it
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, "it hangs"
    return result[0]


@pytest.mark.parametrize("mode", ["rb", "ab"])
def test_what_is_no_file_is_not_opened(no_file: Path, mode: str) -> None:
    if not no_file.exists() and not no_file.is_symlink() and mode == "ab":
        open_regular(no_file, mode).close()  # a new file
        assert no_file.is_file()
        return
    assert isinstance(within(60, lambda: open_regular(no_file, mode).close()), OSError)


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (read_regular, OSError),
        (sha256_of, OSError),
        (caption_bytes, DatasetError),
        (read_template, PromptError),
    ],
)
def test_no_reader_hangs(no_file: Path, read: Callable[[Path], Any], error: type[Exception]) -> None:
    assert isinstance(within(60, lambda: read(no_file)), error)


def test_no_reader_of_torch_or_pictures_hangs(no_file: Path) -> None:
    from textual_inversion import formats
    from textual_inversion.pictures.reading import picture_size, read_image
    from textual_inversion.preprocess.tagger import read_tags

    for read in (read_image, picture_size):
        assert isinstance(within(60, lambda read=read: read(no_file)), DatasetError)
    assert isinstance(within(60, lambda: read_tags(no_file)), ConfigError)
    for ending in (".safetensors", ".pt", ".bin", ".png"):
        named = no_file.with_suffix(ending)
        if no_file.exists() or no_file.is_symlink():
            no_file.rename(named)
            no_file = named
        assert isinstance(within(60, lambda named=named: formats.load(named)), EmbeddingError)


def test_a_pipe_for_a_table_costs_a_message_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "loss.csv")
    refused = within(60, lambda: open_regular(tmp_path / "loss.csv", "a", newline="", encoding="utf-8"))
    assert "a pipe, a device or a socket" in str(refused)


def test_a_file_is_read_written_and_has_the_usual_rights(tmp_path: Path) -> None:
    path = tmp_path / "new.txt"
    with open_regular(path, "w", encoding="utf-8") as file:
        file.write("ä")
    assert read_regular(path) == "ä".encode()
    assert read_regular(path, 2) == "ä".encode()
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "big.txt").open("wb") as file:
        file.truncate(2**31)  # takes no room on the disk
    with pytest.raises(OSError, match="more than 3 MB"):
        read_regular(tmp_path / "big.txt", 3 * 2**20)
    with pytest.raises(DatasetError, match=f"more than {MOST_CAPTION_BYTES >> 10} KB"):
        caption_bytes(tmp_path / "big.txt")
    with pytest.raises(PromptError, match="more than 1 MB"):
        read_template(tmp_path / "big.txt")


def test_the_package_opens_files_with_this_function_only() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name in OURS or name == "files.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            call, first = ast.unparse(node.func), ast.unparse(node.args[0]) if node.args else ""
            if (
                call in _OPENERS
                or call.endswith((".read_text", ".read_bytes"))
                or (call == "Image.open" and first not in ("file", "BytesIO(data)"))
            ):
                found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
            if call.endswith(".open") and first.strip("'") in _MODES:
                found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert found == []
