"""The commands about files as a person meets them: list, inspect, convert and scan, and one line for each kind of bad input."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.checkpoints import write_checkpoint
from textual_inversion import formats
from textual_inversion.cli import main
from textual_inversion.cli.report import printable, say
from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.formats import save, writable_layouts

ATTACK = pickle.dumps(print)
ESCAPE = "\x1b[2J\x07\u202e"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random.safetensors"))


@pytest.fixture
def folder(tmp_path) -> Path:
    top = tmp_path / "embeddings"
    (top / "sub").mkdir(parents=True)
    save(Embedding("good", {"clip_l": torch.ones(2, 64)}, Provenance(9, "model", "0123456789", "a cat")), top / "good.safetensors")
    save(Embedding("old", {"clip_l": torch.ones(1, 768)}), top / "sub" / "old.pt")
    return top


def ran(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error; both free of what steers a terminal."""
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert all(char.isprintable() or char == "\n" for char in text), text
    return status, printed.out, printed.err


def refused(capsys, *arguments: object) -> str:
    """The one line that a command refused with."""
    status, _, error = ran(capsys, *arguments)
    assert status == 2
    (line,) = error.splitlines()
    assert line.startswith("textual-inversion: ")
    return line


def answer(capsys, *arguments: object) -> dict:
    status, out, _ = ran(capsys, *arguments, "--json")
    return {"status": status, **json.loads(out)}


# list -----------------------------------------------------------------------------------------------------------------


def test_list_gives_the_reason_and_each_word_of_a_file(capsys, folder, checkpoint):
    torch.save({"<cat-toy>": torch.ones(768), "dog": torch.ones(2, 768)}, folder / "learned.bin")
    (folder / "broken.pt").write_bytes(b"<html>")
    rows = {row["name"]: row for row in answer(capsys, "list", "--embeddings", folder, "--checkpoint", checkpoint)["embeddings"]}
    assert rows["good"]["reason"] == ""
    assert (rows["cat-toy"]["num_vectors"], rows["dog"]["num_vectors"]) == (1, 2)
    assert rows["dog"]["path"] == rows["cat-toy"]["path"] == str(folder / "learned.bin")
    assert all("made for SD1: 768 wide" in rows[name]["reason"] for name in ("old", "cat-toy", "dog"))
    assert rows["broken"]["reason"]
    _, out, _ = ran(capsys, "list", "--embeddings", folder, "--checkpoint", checkpoint)
    assert len(out.splitlines()) == 5


def test_list_says_one_vector_and_two_vectors(capsys, folder):
    _, out, _ = ran(capsys, "list", "--embeddings", folder)
    assert [line.split()[1:3] for line in out.splitlines()] == [["2", "vectors"], ["1", "vector"]]


def test_list_of_an_empty_folder_says_what_to_do(capsys, tmp_path):
    assert "textual-inversion create" in ran(capsys, "list", "--embeddings", tmp_path)[1]
    assert "nowhere" in refused(capsys, "list", "--embeddings", tmp_path / "nowhere")


# inspect --------------------------------------------------------------------------------------------------------------


def test_inspect_by_path_and_by_name(capsys, folder, checkpoint):
    by_path = answer(capsys, "inspect", folder / "good.safetensors", "--checkpoint", checkpoint)
    by_name = answer(capsys, "inspect", "good", "--embeddings", folder, "--checkpoint", checkpoint)
    assert by_path == by_name
    assert (by_path["status"], by_path["kind"], by_path["compared_with"]) == (0, "ok", "random.safetensors")
    assert by_path["hash"] == by_path["sha256"][:12]
    (facts,) = by_path["embeddings"]
    assert (facts["layout"], facts["counts"], facts["step"], facts["fits"]) == ("safetensors", {"clip_l": 2}, 9, True)
    assert facts["norms"] == {"clip_l": [8.0, 8.0]}
    assert [len(near) for near in facts["nearest"]["clip_l"]] == [5, 5]
    assert facts["norms_of_words"]["clip_l"]["median"] > 0


def test_inspect_without_a_checkpoint_compares_with_the_one_that_ships_where_it_fits(capsys, folder):
    assert answer(capsys, "inspect", folder / "good.safetensors")["compared_with"] == "tiny.safetensors"
    other = answer(capsys, "inspect", folder / "sub" / "old.pt")
    assert other["compared_with"] == ""
    assert (other["embeddings"][0]["fits"], other["embeddings"][0]["without_nearest"]) == (None, "give a checkpoint that it is for")


def test_inspect_says_what_does_not_fit(capsys, folder, checkpoint):
    status, out, _ = ran(capsys, "inspect", folder / "sub" / "old.pt", "--checkpoint", checkpoint)
    assert status == 0
    assert "not with random.safetensors: made for SD1: 768 wide" in out


def test_inspect_shows_damaged_values_and_is_exit_status_2(capsys, folder):
    torch.save({"string_to_param": {"*": torch.tensor([[1.0] * 768, [float("nan")] * 768])}}, folder / "nan.pt")
    status, out, error = ran(capsys, "inspect", folder / "nan.pt")
    assert status == 2
    assert "damaged: vector 2 for clip_l holds NaN" in error
    assert "clip_l 2             NaN or infinite" in out
    assert answer(capsys, "inspect", folder / "nan.pt")["embeddings"][0]["norms"]["clip_l"][1] is None


@pytest.mark.parametrize(
    ("data", "words"),
    [(ATTACK, "unsafe: "), (b"", "damaged: "), (b"<html>", "not an embedding: "), (ATTACK[:4], "damaged: "), (b"PK\x03\x04", "damaged: ")],
)
def test_inspect_of_a_bad_file_is_one_sentence(capsys, folder, data, words):
    (folder / "bad.pt").write_bytes(data)
    assert words in refused(capsys, "inspect", folder / "bad.pt")
    told = answer(capsys, "inspect", folder / "bad.pt")
    assert words in told["error"]
    assert len(told["sha256"]) == 64


@pytest.mark.parametrize("name", ["gone.pt", "nobody", "../nobody", "a\0b", "x" * 300, "🐱", "<a:b>", ESCAPE, "", ".", "sub"])
def test_a_name_without_a_file_is_refused_in_one_sentence(capsys, folder, name):
    assert refused(capsys, "inspect", name, "--embeddings", folder)


# convert --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "ending"), [(name, ending) for name, endings in writable_layouts().items() for ending in endings])
def test_convert_between_all_layouts_keeps_the_vectors_and_says_what_is_lost(capsys, folder, tmp_path, layout, ending):
    source = save(Embedding("x", {"clip_l": torch.randn(3, 768)}, Provenance(9, "model", "0123456789", "a cat")), folder / "x.safetensors")
    there = tmp_path / f"there{ending}"
    told = answer(capsys, "convert", source, there, "--layout", layout.upper())
    assert told["status"] == 0
    assert told["layout"]
    assert torch.equal(formats.load(there).vectors["clip_l"], formats.load(source).vectors["clip_l"])
    before, after = formats.load(source).provenance, formats.load(there).provenance
    assert bool(told["lost"]) is (before != after)
    back = answer(capsys, "convert", there, tmp_path / "back.safetensors")
    assert back["lost"] == []
    assert torch.equal(formats.load(tmp_path / "back.safetensors").vectors["clip_l"], formats.load(source).vectors["clip_l"])


def test_convert_takes_a_name_as_inspect_does(capsys, folder, tmp_path):
    torch.save({"<cat-toy>": torch.ones(768), "dog": torch.ones(2, 768)}, folder / "learned.bin")
    for name, vectors in (("good", 2), ("OLD", 1), ("cat-toy", 1), ("dog", 2)):
        there = tmp_path / f"{name}.safetensors"
        assert ran(capsys, "convert", name, there, "--embeddings", folder)[0] == 0
        assert formats.load(there).num_vectors == vectors
    assert "no embedding of that name" in refused(capsys, "convert", "nobody", tmp_path / "x.pt", "--embeddings", folder)


def test_convert_says_what_a_pt_file_cannot_hold(capsys, folder, tmp_path):
    status, out, _ = ran(capsys, "convert", folder / "good.safetensors", tmp_path / "x.pt")
    assert status == 0
    assert "x.pt does not hold the initialization text" in out
    save(Embedding("xl", {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}), folder / "xl.safetensors")
    assert "several text encoders" in refused(capsys, "convert", folder / "xl.safetensors", tmp_path / "xl.pt")
    assert not (tmp_path / "xl.pt").exists()


def test_convert_into_a_folder_and_over_a_file(capsys, folder, tmp_path):
    assert answer(capsys, "convert", folder / "sub" / "old.pt", tmp_path)["destination"] == str(tmp_path / "old.safetensors")
    assert "--overwrite" in refused(capsys, "convert", folder / "sub" / "old.pt", tmp_path)
    assert ran(capsys, "convert", folder / "sub" / "old.pt", tmp_path, "--overwrite")[0] == 0
    assert answer(capsys, "convert", folder / "sub" / "old.pt", folder, "--layout", "a1111 .pt")["destination"] == str(folder / "old.pt")


def test_convert_of_several_words_wants_one_of_them(capsys, folder, tmp_path):
    torch.save({"cat": torch.ones(768), "dog": torch.ones(2, 768)}, folder / "learned.bin")
    assert "cat, dog" in refused(capsys, "convert", folder / "learned.bin", tmp_path / "x.pt")
    assert "'cow'" in refused(capsys, "convert", folder / "learned.bin", tmp_path / "x.pt", "--word", "cow")
    assert ran(capsys, "convert", folder / "learned.bin", tmp_path / "x.pt", "--word", "dog")[0] == 0
    assert formats.load(tmp_path / "x.pt").num_vectors == 2


@pytest.mark.parametrize(
    ("destination", "more"),
    [
        ("x.ckpt", []),
        ("x.jpg", []),
        ("x.safetensors", ["--layout", "A1111 .pt"]),
        ("x.pt", ["--layout", "nobody's"]),
        ("nowhere/x.pt", []),
        ("a\0b.pt", []),
        ("x" * 300 + ".pt", []),
    ],
)
def test_convert_to_a_file_that_cannot_be_written(capsys, folder, tmp_path, destination, more):
    before = sorted(tmp_path.rglob("*"))
    refused(capsys, "convert", folder / "good.safetensors", tmp_path / destination, *more)
    assert sorted(tmp_path.rglob("*")) == before


def test_convert_of_a_file_that_cannot_be_read(capsys, folder, tmp_path):
    (folder / "evil.pt").write_bytes(ATTACK)
    for source in ("evil.pt", "gone.pt", "a\0b.pt", "sub"):
        refused(capsys, "convert", folder / source, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


# scan -----------------------------------------------------------------------------------------------------------------


def test_scan_of_a_fine_folder_is_exit_status_0(capsys, folder):
    Image.new("RGB", (64, 64), (1, 2, 3)).save(folder / "good.preview.png")
    status, out, _ = ran(capsys, "scan", folder)
    assert status == 0
    assert "2 files: 2 ok; and 1 picture without an embedding." in out
    assert "preview" not in out
    told = answer(capsys, "scan", folder)
    assert len(told["files"]) == 3
    assert told["counts"]["ok"] == 2


def test_scan_reports_without_touching_then_moves_and_converts(capsys, folder):
    (folder / "evil.pt").write_bytes(ATTACK)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status, out, _ = ran(capsys, "scan", folder)
    assert status == 1
    assert "evil.pt: unsafe: " in out
    assert "--quarantine would move 1 file" in out
    assert "--to-safetensors would convert 1 file" in out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    told = answer(capsys, "scan", folder, "--quarantine", "--to-safetensors", "--replace")
    assert told["status"] == 1
    rows = {Path(row["path"]).name: row for row in told["files"]}
    assert rows["evil.pt"]["moved_to"] == str(folder / "quarantine" / "evil.pt.unsafe")
    assert rows["old.pt"]["converted_to"] == [str(folder / "sub" / "old.safetensors")]
    assert ran(capsys, "scan", folder)[0] == 0


def test_scan_counts_the_states_of_optimizers(capsys, folder):
    torch.save({"hash": 1, "optimizer_state_dict": {"state": {}, "param_groups": []}}, folder / "sub" / "old.pt.optim")
    status, out, _ = ran(capsys, "scan", folder)
    assert status == 0
    assert "old.pt.optim: not an embedding: an optimizer's state" in out
    assert "3 files: 2 ok, 1 not an embedding." in out


def test_scan_moves_to_another_folder(capsys, folder, tmp_path):
    (folder / "sub" / "evil.pt").write_bytes(ATTACK)
    ran(capsys, "scan", folder, "--quarantine", tmp_path / "aside")
    assert (tmp_path / "aside" / "sub" / "evil.pt.unsafe").exists()


def test_a_file_that_scan_cannot_move_is_reported_and_the_rest_goes_on(capsys, folder, monkeypatch):
    (folder / "a.pt").write_bytes(ATTACK)
    save(Embedding("old", {"clip_l": torch.zeros(1, 768)}), folder / "sub" / "old.safetensors")
    save(Embedding("other", {"clip_l": torch.zeros(1, 768)}), folder / "other.pt")
    monkeypatch.setattr(os, "makedirs", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    status, out, _ = ran(capsys, "scan", folder, "--quarantine", "--to-safetensors")
    assert status == 1
    assert "left as it is: it was not moved to" in out
    assert "old.safetensors is there already and holds something else" in out
    assert (folder / "other.safetensors").exists()
    assert (folder / "a.pt").read_bytes() == ATTACK


def test_scan_refuses_a_missing_folder_and_replace_alone(capsys, folder):
    for path in ("nowhere", folder / "good.safetensors", "a\0b", "x" * 300):
        refused(capsys, "scan", path)
    assert "--to-safetensors" in refused(capsys, "scan", folder, "--replace")


# the terminal ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="Windows allows no such names")
def test_names_and_texts_that_steer_a_terminal_are_shown_as_escapes(capsys, folder):
    name = f"a{ESCAPE}\nb"
    origin = Provenance(1, ESCAPE, ESCAPE, ESCAPE)
    save(Embedding(name, {"clip_l": torch.ones(1, 768)}, origin), folder / f"{name}.safetensors")
    torch.save({f"w{ESCAPE}": torch.ones(768), "\r2": torch.ones(768)}, folder / "words.bin")
    (folder / f"evil{ESCAPE}.pt").write_bytes(ATTACK)
    (folder / os.fsdecode(b"\xff.pt")).write_bytes(ATTACK)
    (folder / f"dir{ESCAPE}").symlink_to("nowhere")
    ran(capsys, "list", "--embeddings", folder)
    for path in folder.iterdir():
        ran(capsys, "inspect", path)
    ran(capsys, "convert", folder / "words.bin", folder / "x.pt")
    ran(capsys, "convert", folder / f"{name}.safetensors", folder / f"{name}.pt")
    _, out, _ = ran(capsys, "scan", folder, "--quarantine", folder / ESCAPE, "--to-safetensors")
    assert "\\x1b[2J" in out


def test_printable_keeps_letters_of_every_language():
    assert printable("Größe 猫 🐱 é") == "Größe 猫 🐱 é"
    assert printable("a\tb\nc\x9b\udcff") == "a\\tb\\nc\\x9b\\udcff"


def test_a_terminal_with_fewer_letters_gets_escapes(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("Größe 🐱")
    assert stream.buffer.getvalue().split() == b"Gr\\xf6\\xdfe \\U0001f431".split()


def test_ten_thousand_names_in_a_file_do_not_fill_the_screen(capsys, folder):
    torch.save({f"word{index}": torch.ones(8) for index in range(500)}, folder / "many.bin")
    _, out, _ = ran(capsys, "scan", folder)
    assert len(out) < 2000


@pytest.mark.skipif(os.name != "posix", reason="memory as POSIX counts it")
def test_bad_files_take_little_memory(tmp_path):
    (tmp_path / "zeros.pt").write_bytes(b"\x80\x02" + bytes(60 * 2**20))
    (tmp_path / "text.pt").write_bytes(b"X\0\0\0\x03" + bytes(60 * 2**20))
    (tmp_path / "tar.bin").write_bytes(bytes(60 * 2**20))
    with (tmp_path / "huge.pt").open("wb") as file:
        file.truncate(2**33)
    code = (
        "import resource, sys\nfrom textual_inversion.cli import main\nimport textual_inversion.audit.scan\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nmain(['scan', sys.argv[1]])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout.splitlines()[-1]) < 200, done.stdout
