"""Notes, metadata and pictures beside embeddings: read when asked, bounded, and never as HTML."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from textual_inversion.embedding import Embedding
from textual_inversion.formats import save
from textual_inversion.library import About, EmbeddingLibrary, Entry
from textual_inversion.library.sidecars import read_sidecars

CIVITAI_VERSION = {  # one version of a model, as the gallery answers for a file's hash
    "id": 9208,
    "modelId": 7808,
    "name": "EasyNegative",
    "trainedWords": ["easynegative", "  bad\n hands "],
    "baseModel": "SD 1.5",
    "description": "<p>First <b>version</b> &amp; the best.<br/>Weight&nbsp;0.8</p><script>alert(1)</script>",
    "model": {"name": "EasyNegative", "type": "TextualInversion", "description": "<ul><li>For faces</li><li>&lt;img src=x&gt;</li></ul>"},
    "files": [{"name": "easynegative.safetensors"}],
}


@pytest.fixture
def entry(tmp_path: Path) -> Any:
    """Write the files beside `cat.safetensors`, then give its entry."""

    def beside(**files: str | bytes | dict[str, Any]) -> Entry:
        save(Embedding("cat", {"clip_l": torch.ones(1, 768)}), tmp_path / "cat.safetensors", overwrite=True)
        for ending, content in files.items():
            data = json.dumps(content).encode() if isinstance(content, dict) else content.encode() if isinstance(content, str) else content
            (tmp_path / f"cat.{ending.replace('_', '.')}").write_bytes(data)
        return EmbeddingLibrary([tmp_path]).entries()[0]

    return beside


def test_a_text_and_a_description(entry: Any) -> None:
    about = entry(txt="\ufeff use at 0.8 \n", description_txt="A cat.").about
    assert (about.notes, about.description) == ("use at 0.8", "A cat.")


def test_a1111s_metadata(entry: Any) -> None:
    metadata = {"description": "A cat", "notes": "0.8", "sd version": "SD1", "preferred weight": 0.75, "negative text": "dogs", "x": [1]}
    found = entry(json=metadata)
    assert found.about == About("A cat", "0.8", "SD1", 0.75, "dogs")
    assert found.notes == "A cat\n0.8\nMade for: SD1\nPreferred weight: 0.75\nNegative text: dogs"


@pytest.mark.parametrize("weight", [0, "0.8", None, True, [], float("nan"), float("inf")])
def test_no_preferred_weight(entry: Any, weight: object) -> None:
    assert entry(json=json.dumps({"preferred weight": weight})).about.preferred_weight is None


def test_civitais_record_becomes_plain_text(entry: Any) -> None:
    about = entry(civitai_info=CIVITAI_VERSION).about
    assert (about.model_name, about.base_model, about.trained_words) == ("EasyNegative", "SD 1.5", ("easynegative", "bad hands"))
    assert about.description == "For faces\n<img src=x>\nFirst version & the best.\nWeight 0.8"


def test_a_whole_model_of_civitai_means_its_newest_version(entry: Any) -> None:
    model = {"name": "Easy", "description": "<p>All</p>", "modelVersions": [{"baseModel": "SDXL 1.0", "trainedWords": ["easy"]}, {}]}
    about = entry(civitai_info=model).about
    assert (about.model_name, about.base_model, about.trained_words, about.description) == ("Easy", "SDXL 1.0", ("easy",), "All")


@pytest.mark.parametrize(
    "content", ["{}", "", "{}\n", '{"model": 1, "trainedWords": {"a": 1}, "description": ["<p>"], "modelVersions": [3]}']
)
def test_a_file_without_facts_is_no_problem(entry: Any, content: str) -> None:
    found = entry(civitai_info=content)
    assert (found.about, found.notes) == (About(), "")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ('{"notes": "' + "x" * 2**20 + '"}', "larger than 1 MB"),
        (b"\xff\xfe{", "not valid JSON"),
    ],
)
def test_a_broken_file_is_left_out_and_becomes_a_problem(entry: Any, content: str | bytes, why: str) -> None:
    found = entry(json=content, txt="but this counts")
    assert found.usable
    assert found.about.notes == "but this counts"
    assert len(found.about.problems) == 1
    assert found.about.problems[0].startswith("cat.json is left out because")
    assert why in found.notes


def test_long_texts_are_cut(entry: Any) -> None:
    found = entry(txt="x" * 100_000, json={"description": "y" * 100_000, "sd version": "z" * 1000})
    assert (len(found.about.notes), len(found.about.description), len(found.about.base_model)) == (65_536, 65_536, 200)


def test_a_text_file_counts_before_json(entry: Any) -> None:
    about = entry(txt="mine", json={"notes": "theirs", "sd version": "SD1"}, civitai_info=CIVITAI_VERSION).about
    assert (about.notes, about.base_model) == ("mine", "SD1")


def test_sidecars_are_read_when_asked_for_and_not_in_a_scan(entry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("textual_inversion.library.sidecars._read", lambda path: opened.append(path.name) or {})
    found = entry(txt="one", json="{}")
    assert opened == []
    assert found.about == About()
    assert opened == ["cat.txt", "cat.json"]
    monkeypatch.undo()
    (tmp_path / "cat.txt").write_text("two")
    assert found.notes == "two"
    os.unlink(tmp_path / "cat.txt")
    assert found.notes == ""


def test_a_folder_with_a_sidecars_name_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").mkdir()
    assert "cat.txt cannot be read" in read_sidecars([tmp_path / "cat.txt"]).text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cat.json")
    assert read_sidecars([tmp_path / "cat.json"]).text == "cat.json cannot be read: it is a pipe, a device or a socket, not a file."


@pytest.mark.parametrize(
    ("html", "shown"),
    [
        ("2 < 3 and 4 > 1", "2 < 3 and 4 > 1"),
        ("a<b", "a<b"),
        ("a<!-- x > y <b> z -->b<!--c", "ab"),
        ("<SCRIPT>if(a<b){c}</ SCRIPT></script >d<style>e", "d"),
        ("<!DOCTYPE html><p class='x'>f<p>g&lt;p>&amp;lt;", "f\ng<p>&lt;"),
    ],
)
def test_html_becomes_text(tmp_path: Path, html: str, shown: str) -> None:
    (tmp_path / "cat.civitai.info").write_text(json.dumps({"description": html}))
    assert read_sidecars([tmp_path / "cat.civitai.info"]).description == shown


@pytest.mark.parametrize("part", ["<", "<a ", "<a b='", "<!", "<!--", "</", "<![CDATA[", "&#", "<script>", "> "])
def test_html_that_never_ends_takes_no_time(tmp_path: Path, part: str) -> None:
    html = part * (65_536 // len(part))
    (tmp_path / "cat.civitai.info").write_text(json.dumps({"description": html, "model": {"description": html[1:]}}))
    begun = time.monotonic()
    assert read_sidecars([tmp_path / "cat.civitai.info"]).problems == ()
    assert time.monotonic() - begun < 2
