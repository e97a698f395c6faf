"""Habits of the command line: pipes that end early, pictures that say how they were made, words that did not fit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from textual_inversion.cli import main
from textual_inversion.formats import file_sha256


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEXTUAL_INVERSION_DATA", str(tmp_path))
    return tmp_path / "embeddings"


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(folder: Path, command: list[str]) -> None:
    for number in range(3):
        main(["create", f"word{number}", "--init", "heart"])
    start = "import sys; from textual_inversion.cli import main; sys.stdin.read(); sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", start, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},  # with it, argparse hides the failure
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdout.close()  # before it writes
    process.stdin.close()
    said = process.stderr.read()
    assert process.wait(60) == 141
    assert "roken" not in said
    assert "Traceback" not in said


def test_a_picture_says_how_it_was_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["create", "zorb", "--init", "heart", "--vectors", "2"])
    out = folder.parent / "drawn"
    prompt = "a <zorb:1.2>, тест"
    assert main(["generate", prompt, "--steps", "1", "--seed", "5", "--out", str(out), "--negative", "zorb"]) == 0
    text = Image.open(out / "5.png").info["parameters"]
    assert text.startswith(f"{prompt}\nNegative prompt: zorb\nSteps: 1, Sampler: ")
    assert re.search(r"Seed: 5, Size: 128x128, Model hash: [0-9a-f]{10}, Model: tiny", text)
    assert text.endswith(f'TI hashes: "zorb: {file_sha256(folder / "zorb.safetensors")[:12]}"')


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--init", "a purple dotted star", "--vectors", "1"], "Only “a” became vectors; 3 tokens of the words did not fit."),
        (["--init", "star " * 90], "15 tokens of the words did not fit."),
        (["--init", "star, heart, (red:1.3)"], "Each of , ( : . ) became a vector of its own"),
        (["--init", "purple star"], ""),
        (["--init", "star", "--vectors", "4"], ""),
        (["--init", "*"], ""),
        (["--init", "auto"], ""),
    ],
)
def test_words_that_are_not_what_they_seem(folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert main(["create", "zorb", *options]) == 0
    (_, *remarks) = capsys.readouterr().out.strip().splitlines()
    assert len(remarks) == bool(said)
    assert said in "".join(remarks)
