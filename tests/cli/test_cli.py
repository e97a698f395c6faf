"""The command line as a person meets it: what it prints, its exit status, and one line for each kind of bad input."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.support.checkpoints import write_checkpoint
from textual_inversion import formats
from textual_inversion.cli import build_parser, main
from textual_inversion.settings.training import TrainingConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random.safetensors"))


@pytest.fixture
def place(tmp_path, checkpoint):
    """Arguments that keep a command inside the test's folder."""
    return ["--embeddings", str(tmp_path / "embeddings"), "--checkpoint", checkpoint]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(2):
        Image.new("RGB", (64, 64), (40 * index, 90, 120)).save(folder / f"{index}.png")
    return str(folder)


def refused(capsys, arguments) -> str:
    """The one line that a command refused with."""
    status = main(arguments)
    printed = capsys.readouterr()
    assert status == 2, printed
    lines = [line for line in printed.err.splitlines() if line]
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("textual-inversion: ")
    return lines[0]


def test_create_train_generate_list_inspect_convert(capsys, tmp_path, place, pictures, checkpoint):
    assert main(["create", "my-cat", "--init", "small cat", *place, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["num_vectors"] == 2
    size = ["--width", "64", "--height", "64"]
    assert main(["train", "my-cat", "--images", pictures, "--steps", "2", "--batch-size", "1", *size, *place, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert (trained["step"], trained["reason"], trained["images"]) == (2, "finished", 2)
    assert (
        main(["generate", "a <my-cat:1.2>", "--steps", "2", "--count", "2", *size, "--out", str(tmp_path / "out"), *place, "--json"]) == 0
    )
    drawn = json.loads(capsys.readouterr().out)["pictures"]
    assert [Image.open(path).size for path in drawn] == [(64, 64), (64, 64)]
    assert main(["list", "--embeddings", str(tmp_path / "embeddings"), "--checkpoint", checkpoint, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["embeddings"]
    assert (row["name"], row["num_vectors"], row["step"], row["reason"]) == ("my-cat", 2, 2, "")
    assert main(["inspect", made["embedding"], "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["embeddings"]
    assert (facts["layout"], facts["widths"], facts["step"]) == ("safetensors", {"clip_l": 64}, 2)
    target = tmp_path / "other.pt"
    assert main(["convert", made["embedding"], str(target)]) == 0
    assert torch.equal(formats.load(target).vectors["clip_l"], formats.load(made["embedding"]).vectors["clip_l"])


def test_preprocess_writes_pictures(capsys, tmp_path, pictures):
    (Path(pictures) / "3.png").write_bytes(b"none")
    assert main(["preprocess", pictures, str(tmp_path / "ready"), "--width", "64", "--height", "64", "--flip", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (len(result["written"]), len(result["skipped"])) == (4, 1)
    assert "3.png" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "../up"], "path"),
        (["create", ""], "empty"),
        (["create", "x", "--vectors", "0"], "from 1 to 75"),
        (["create", "x", "--vectors", "76"], "from 1 to 75"),
        (["create", "x", "--vectors", "some"], "auto"),
        (["train", "nobody", "--images", "."], "create it first"),
        (["generate", "x", "--sampler", "DPM fast"], "Euler a"),
        (["generate", "x", "--width", "65"], "multiple of 8"),
    ],
)
def test_bad_input_is_refused_in_one_line(capsys, place, arguments, words):
    assert words in refused(capsys, [*arguments, *place])


def test_a_check_describes_the_run_and_changes_nothing(capsys, tmp_path, place, pictures):
    main(["create", "x", "--init", "cat", *place])
    capsys.readouterr()
    before = (tmp_path / "embeddings" / "x.safetensors").read_bytes()
    arguments = ["train", "x", "--images", pictures, "--width", "64", "--height", "64", "--check", *place]
    assert main(arguments) == 0
    assert "Every prompt holds the name." in capsys.readouterr().out.splitlines()
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["pictures"], told["ready"]) == (2, True)
    assert told["seconds"] > 0
    template = tmp_path / "template.txt"
    template.write_text("a photo\n")
    assert main([*arguments, "--template", str(template)]) == 1
    assert "has no [name]" in capsys.readouterr().out
    assert (tmp_path / "embeddings" / "x.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learning-rate", "fast"], "fast"),
        (["--learning-rate", "0.1:5, 0.2:3"], "0.2:3"),
        (["--steps", "0"], "from 1 to"),
        (["--width", "60"], "60"),
        (["--batch-size", "0"], "Batch size"),
        (["--clip-mode", "hard"], "norm"),
        (["--images", "nowhere"], "nowhere"),
    ],
)
def test_bad_training_settings_are_refused_and_nothing_is_lost(capsys, tmp_path, place, pictures, arguments, words):
    main(["create", "x", "--init", "cat", *place])
    capsys.readouterr()
    before = (tmp_path / "embeddings" / "x.safetensors").read_bytes()
    assert words in refused(capsys, ["train", "x", "--images", pictures, *arguments, *place])
    assert (tmp_path / "embeddings" / "x.safetensors").read_bytes() == before


def test_a_folder_without_pictures_and_a_template_without_the_name(capsys, tmp_path, place, pictures):
    main(["create", "x", *place])
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    assert "picture" in refused(capsys, ["train", "x", "--images", str(tmp_path / "empty"), *place])
    (tmp_path / "template.txt").write_text("a photo\n")
    assert "[name]" in refused(capsys, ["train", "x", "--images", pictures, "--template", str(tmp_path / "template.txt"), *place])


def test_a_taken_name_is_refused_unless_overwriting(capsys, place):
    assert main(["create", "x", *place]) == 0
    capsys.readouterr()
    assert "overwriting" in refused(capsys, ["create", "x", *place])
    assert main(["create", "x", "--overwrite", *place]) == 0


def test_create_says_that_the_checkpoint_knows_none_of_the_words(capsys, tmp_path):
    for words, told in (("helicopter", True), ("heart", False), ("", False)):
        assert main(["create", "x", "--init", words, "--overwrite", "--embeddings", str(tmp_path)]) == 0
        assert ("knows none of these words" in capsys.readouterr().out) is told


@pytest.mark.parametrize(
    ("given", "accepted"), [("auto", True), ("10", True), ("0", True), ("-1", False), ("often", False), ("2.5", False)]
)
def test_a_word_or_a_number_is_taken_as_such(capsys, place, pictures, given, accepted):
    assert main(["create", "x", *place]) == 0
    train = ["train", "x", "--images", str(pictures), "--steps", "1", "--width", "64", "--height", "64", *place]
    status = main([*train, f"--evaluate-every={given}"])
    told = capsys.readouterr()
    assert (status == 0) is accepted, told
    assert ("Evaluate every N steps is" in told.err) is not accepted


def test_create_says_that_training_finds_the_words(capsys, tmp_path):
    assert main(["create", "x", "--init", "auto", "--embeddings", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "4 vectors from words that training finds" in told
    assert "knows none" not in told


@pytest.mark.parametrize(
    ("name", "tensors", "words"),
    [
        ("xl", {"conditioner.embedders.0.transformer.text_model.x": torch.zeros(1)}, "no text encoder clip_g"),
        ("lora", {"lora_unet_down.weight": torch.zeros(2, 2)}, "is a LoRA"),
    ],
)
def test_a_checkpoint_that_cannot_be_used(capsys, tmp_path, name, tensors, words):
    save_file(tensors, tmp_path / f"{name}.safetensors")
    where = ["--embeddings", str(tmp_path / "e"), "--checkpoint", str(tmp_path / f"{name}.safetensors")]
    assert words in refused(capsys, ["generate", "a cat", "--out", str(tmp_path), *where])


def test_pictures_of_others_are_not_overwritten(capsys, tmp_path, place):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "embeddings").mkdir()
    (out / "7.png").write_bytes(b"somebody's own")
    arguments = ["generate", "a cat", "--seed", "7", "--steps", "1", "--width", "64", "--height", "64", "--out", str(out), *place, "--json"]
    for name in ("7-2.png", "7-3.png"):
        assert main(arguments) == 0
        assert json.loads(capsys.readouterr().out)["pictures"] == [str(out / name)]
    assert (out / "7.png").read_bytes() == b"somebody's own"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there(capsys, place, device):
    assert repr(device) in refused(capsys, ["generate", "a cat", *place, "--device", device])


def test_training_that_had_to_stop_is_exit_status_1_and_the_json_says_why(capsys, tmp_path, place, pictures):
    main(["create", "x", "--init", "cat", *place])
    capsys.readouterr()
    size = ["--width", "64", "--height", "64", "--steps", "9", "--learning-rate", "1e38"]
    assert main(["train", "x", "--images", pictures, *size, *place, "--json"]) == 1
    printed = capsys.readouterr()
    assert "loss became nan" in json.loads(printed.out)["error"]
    assert "loss became nan" in printed.err
    assert formats.load(tmp_path / "embeddings" / "x.safetensors").provenance.step == 0


def test_bad_input_is_json_too(capsys, place):
    assert main(["train", "nobody", "--images", ".", *place, "--json"]) == 2
    assert "create it first" in json.loads(capsys.readouterr().out)["error"]


def test_memory_that_runs_out_is_one_line(capsys, place, monkeypatch):
    def runs_out(*_arguments, **_options):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr("textual_inversion.diffusion.model.load_checkpoint", runs_out)
    assert "not enough memory" in refused(capsys, ["generate", "a cat", *place])


def test_ctrl_c_works_as_before_after_training(place, pictures):
    before = signal.getsignal(signal.SIGINT)
    main(["create", "x", "--init", "cat", *place])
    main(["train", "x", "--images", pictures, "--width", "64", "--height", "64", "--steps", "1", *place])
    assert signal.getsignal(signal.SIGINT) is before


def test_help_explains_every_training_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "A1111's schedule" in text
    assert "show each picture mirrored" in text


def options_of(command: str) -> Iterator[argparse.Action]:
    """The options of a command that set something."""
    commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for action in commands.choices[command]._actions:
        if action.option_strings and not action.required and action.dest not in ("help", "json", "check", "dry_run"):
            yield action


@pytest.mark.parametrize("command", ["create", "preprocess", "train", "generate", "serve", "demo"])
def test_help_shows_the_default_of_every_option(command):
    for option in options_of(command):
        assert "; default: " in (option.help or "") or option.option_strings == ["--no-crop"], option.option_strings


@pytest.mark.parametrize(("name", "choices"), [("clip_mode", "{off,value,norm}"), ("latent_sampling", "{once,deterministic,random}")])
def test_help_shows_the_choices_and_the_settings_check_them(name, choices):
    (option,) = (option for option in options_of("train") if option.dest == name)
    assert (option.metavar, option.choices) == (choices, None)


def test_every_training_setting_has_its_option():
    settings = {field.name for field in fields(TrainingConfig)} - {"name", "images"}
    assert settings - {option.dest for option in options_of("train")} == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "x", "--images", "nowhere"],
        ["train", "x", "--images", ".", "--learning-rate", "fast"],
        ["preprocess", "nowhere", "out"],
        ["list", "--embeddings", "nowhere"],
        ["scan", "nowhere"],
    ],
)
def test_bad_input_is_refused_without_importing_torch(tmp_path, arguments):
    code = "import sys\nfrom textual_inversion.cli import main\nprint(main(sys.argv[1:]), 'torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["2", "False"]


def test_unknown_names_in_angle_brackets_give_a_warning_and_are_drawn_as_text(capsys, tmp_path, place):
    main(["create", "my cat", "--init", "cat", *place])
    capsys.readouterr()
    small = ["--steps", "1", "--width", "64", "--height", "64", "--out", str(tmp_path / "out"), *place]
    assert main(["generate", "a <my cat:1.2>, <typo> and <typo:1.2>", "--negative", "<other>", *small, "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["unknown"] == ["<typo>", "<typo:1.2>", "<other>"]
    assert told["prompt"] == "a <my cat:1.2>, <typo> and <typo:1.2>"
    (line, _) = printed.err.splitlines()
    assert line == "<typo>, <typo:1.2>, <other> are no names of embeddings that fit, and were taken as plain text."
    assert main(["generate", "a (my cat:1.2) beside <my cat>", *small]) == 0
    assert capsys.readouterr().err == ""


def test_a_word_that_is_no_command_is_exit_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["dance"])
    assert stop.value.code == 2


def test_several_names_learn_together(capsys, tmp_path, place, pictures):
    for name in ("one", "two"):
        assert main(["create", name, "--init", "cat", *place]) == 0
        shutil.copytree(pictures, tmp_path / "sets" / name)
    size = ["--width", "64", "--height", "64", "--batch-size", "1"]
    capsys.readouterr()
    assert main(["train", "one", "two", "--images", str(tmp_path / "sets"), "--steps", "2", *size, *place, "--json"]) == 0
    both = json.loads(capsys.readouterr().out)["embeddings"]
    assert [(each["name"], each["step"], each["reason"]) for each in both] == [("one", 2, "finished"), ("two", 2, "finished")]


def test_a_list_gives_each_embedding_its_own_settings(capsys, tmp_path, place, pictures):
    for name in ("one", "two"):
        main(["create", name, "--init", "cat", *place])
    file = tmp_path / "both.json"
    file.write_text(json.dumps([{"name": "one", "steps": 3}, {"name": "two", "images": pictures, "width": 128}]), encoding="utf-8")
    shutil.copytree(pictures, tmp_path / "sets" / "one")
    size = ["--width", "64", "--height", "64", "--batch-size", "1"]
    capsys.readouterr()
    arguments = ["train", "--together", str(file), "--images", str(tmp_path / "sets"), "--steps", "2", *size, *place]
    assert main([*arguments, "--log-dir", str(tmp_path / "log")]) == 0
    said = capsys.readouterr().out
    assert "one.safetensors: step 3, finished" in said
    assert "two.safetensors: step 2, finished" in said
    settings = json.loads((tmp_path / "log" / "two" / "settings.json").read_text(encoding="utf-8"))
    assert (settings["width"], settings["height"]) == (128, 64)


@pytest.mark.parametrize(
    ("arguments", "setting", "words"),
    [
        (["--images", "."], "name", "Which embedding"),
        (["one"], "images", "--images"),
        (["one", "--together", "FILE"], "name", "not in both"),
        (["--together", "FILE", "--images", "."], "together", "no list of objects"),
        (["--together", "nowhere.json", "--images", "."], "together", "cannot be read"),
    ],
)
def test_what_is_missing_for_training_is_one_sentence(capsys, tmp_path, place, arguments, setting, words):
    file = tmp_path / "list.json"
    file.write_text('{"name": "one"}', encoding="utf-8")
    assert words in refused(capsys, ["train", *(str(file) if each == "FILE" else each for each in arguments), *place])
