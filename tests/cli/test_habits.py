"""Habits of the command line: pipes that end early, pictures that say how they were made, words that did not fit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from textual_inversion.cli import main
from textual_inversion.diffusion.generate import generate
from textual_inversion.diffusion.model import TINY_CHECKPOINT, load_checkpoint
from textual_inversion.formats import file_sha256
from textual_inversion.settings.generation import GenerationSettings


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
        (["--init", "star, heart, (red:1.3)"], "“,” and “(” and “:” and “)” became vectors too"),
        (["--init", "purple star"], ""),
        (["--init", "star", "--vectors", "4"], ""),
        (["--init", "a red, star"], "“,” became a vector too"),
        (["--init", "*"], ""),
        (["--init", "café 😊 日本"], ""),
        (["--init", "cat & dog-house"], ""),
        (["--init", "auto"], ""),
    ],
)
def test_words_that_are_not_what_they_seem(folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert main(["create", "zorb", *options]) == 0
    (_, *remarks) = capsys.readouterr().out.strip().splitlines()
    assert len(remarks) == bool(said)
    assert said in "".join(remarks)


def test_only_embeddings_whose_vectors_are_in_the_prompt_are_named(folder: Path) -> None:
    for name in ("on", "cat"):
        main(["create", name, "--init", "heart"])
    out = folder.parent / "drawn"
    assert main(["generate", "a stone lion, category cat", "--steps", "1", "--seed", "5", "--out", str(out)]) == 0
    text = Image.open(out / "5.png").info["parameters"]
    assert re.search(r'TI hashes: "cat: [0-9a-f]{12}"$', text)


def test_a_checkpoint_that_is_gone_costs_its_hash_and_not_the_pictures(tmp_path: Path) -> None:
    path = tmp_path / "moved.safetensors"
    shutil.copy(TINY_CHECKPOINT, path)
    model = load_checkpoint(path, device="cpu", precision="fp32")
    path.unlink()
    (picture,) = generate(model, GenerationSettings(prompt="a heart", steps=1, width=128, height=128), {})
    assert "Model hash" not in picture.info["parameters"]
    assert picture.info["parameters"].endswith("Model: moved")


def test_the_versions_that_a_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for words in ("textual-inversion ", f"Python {sys.version.split()[0]}", "torch ", "CUDA ", "device ", "safetensors "):
        assert words in printed


def test_create_tells_of_a_name_that_is_a_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "red", "--init", "star"]) == 0
    assert "every prompt with it means the embedding" in capsys.readouterr().out


def test_a_picture_without_an_embedding_does_not_take_a_name(folder: Path) -> None:
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "Bird.png")
    assert main(["create", "bird", "--init", "star"]) == 0
    assert (folder / "Bird.png").is_file()
    assert main(["create", "bird", "--init", "star"]) == 2
