"""The table of embeddings of a real A1111: every layout, what does not fit and why, hostile files, the option that leaves it alone."""

from __future__ import annotations

import importlib.util
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hosts.a1111_browser import TINY, create, picture, running_a1111, set_options, train, wait_for
from tests.hosts.conftest import ROOT, WebUI
from textual_inversion import Embedding
from textual_inversion.formats import save
from textual_inversion.hosts.webui.tables import spellings
from textual_inversion.library import EmbeddingLibrary, Entry

pytestmark = pytest.mark.hosts

REST = 2.3  # seconds after which subfolders are looked at again
GOLDEN = ROOT / "tests" / "golden"


def golden_script() -> Any:
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A1111 over every golden file, and over the SD1 layouts again, as wide as the tiny checkpoint."""
    data = tmp_path_factory.mktemp("a1111-table")
    shutil.copytree(GOLDEN, data / "embeddings" / "full", ignore=shutil.ignore_patterns("*.py", "expected.json", "__pycache__"))
    narrow = data / "embeddings" / "narrow"
    narrow.mkdir()
    script = golden_script()
    script.WIDTHS["clip_l"] = 64
    script.make_all(narrow)
    save(Embedding("card", {"clip_l": torch.randn(2, 64)}), narrow / "card.png")
    with running_a1111(data) as webui:
        yield webui


def tables(webui: WebUI) -> dict[str, Any]:
    return dict(webui.get("/test/inside"))


def refreshed(webui: WebUI) -> dict[str, Any]:
    webui.post("/sdapi/v1/refresh-embeddings")
    return tables(webui)


def told(entry: Entry) -> list[Any]:
    return [sum(entry.info.widths.values()) if entry.info else 0, entry.reason]


def test_every_sd1_layout_loads_and_what_does_not_fit_says_why(webui: WebUI) -> None:
    library = EmbeddingLibrary([webui.data / "embeddings"], {"clip_l": 64})
    found = tables(webui)
    entries = library.rescan()
    assert sum(entry.usable for entry in entries) >= 25
    for entry in entries:
        if entry.usable:
            assert entry.info is not None
            word = next(name for name in spellings(entry) if name in found["loaded"])
            assert found["loaded"][word][:2] == [entry.info.num_vectors, 64]
        elif entry.name not in found["loaded"]:
            assert any(found["skipped"][entry.name] == told(other) for other in entries if other.name == entry.name)
    assert not set(found["loaded"]) & set(found["skipped"])
    assert {reason.split(":")[0] for _, reason in found["skipped"].values()} >= {"made for SD1", "made for SD2", "made for SDXL"}


def test_every_loaded_layout_changes_the_picture(webui: WebUI) -> None:
    found = tables(webui)["loaded"]
    plain, _ = picture(webui, "a square", steps=1, width=64, height=64)
    for name in found:
        word = name.replace("(", r"\(").replace(")", r"\)")
        drawn, infotext = picture(webui, f"a {word} square", steps=1, width=64, height=64)
        assert drawn != plain, name
        assert f"{name}: " in infotext.partition("TI hashes: ")[2], name


def test_the_hosts_own_listing_answers_for_both_dicts(webui: WebUI) -> None:
    listed = webui.get("/sdapi/v1/embeddings")
    found = tables(webui)
    assert set(listed["loaded"]) == set(found["loaded"])
    assert set(listed["skipped"]) == set(found["skipped"])
    for item in (*listed["loaded"].values(), *listed["skipped"].values()):
        assert set(item) == {"step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors"}
        assert isinstance(item["shape"], int)
        assert isinstance(item["vectors"], int)


class _Writes:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (open, (str(self.target), "w"))


def test_hostile_and_broken_files_do_no_harm_and_take_one_line(webui: WebUI, tmp_path: Path) -> None:
    folder = webui.data / "embeddings"
    hurt = tmp_path / "hurt"
    torch.save({"string_to_param": {"*": torch.zeros(1, 64)}, "name": _Writes(hurt)}, folder / "hostile.pt")
    (folder / "plain-pickle.pt").write_bytes(pickle.dumps({"string_to_param": _Writes(hurt)}))
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    (folder / "half.bin").write_bytes((GOLDEN / "learned_embeds.bin").read_bytes()[:700])
    before = {path: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}
    at = len(webui.log.read_text(encoding="utf-8"))
    found = refreshed(webui)
    assert not hurt.exists()
    assert {"hostile", "plain-pickle", "broken", "half"} <= set(found["skipped"])
    assert all(found["skipped"][name][1] for name in ("hostile", "plain-pickle", "broken", "half"))
    said = webui.log.read_text(encoding="utf-8")[at:]
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "Textual Inversion: " in line]
    assert all(file in line for file in ("hostile.pt", "plain-pickle.pt", "broken.safetensors", "half.bin")), said
    assert {path: path.read_bytes() for path in folder.glob("*.*") if path.is_file()} == before  # nothing renamed, nothing mended
    at = len(webui.log.read_text(encoding="utf-8"))
    refreshed(webui)
    assert "hostile.pt" not in webui.log.read_text(encoding="utf-8")[at:]  # told once
    assert picture(webui, "a red circle")[0]


def test_a_file_that_comes_or_changes_counts_from_the_next_picture_on(webui: WebUI) -> None:
    deep = webui.data / "embeddings" / "narrow" / "deep"
    deep.mkdir()
    save_file({"emb_params": torch.randn(2, 64)}, deep / "late.safetensors")
    time.sleep(REST)
    first, told = picture(webui, "a late, square")
    assert "late: " in told
    save_file({"emb_params": torch.randn(2, 64)}, deep / "late.safetensors")
    time.sleep(REST)
    second, told_again = picture(webui, "a late, square")
    assert second != first
    assert told_again != told
    (deep / "late.safetensors").unlink()
    time.sleep(REST)
    assert "late: " not in picture(webui, "a late, square")[1]


def test_the_option_leaves_loading_to_the_host(webui: WebUI) -> None:
    ours = refreshed(webui)
    assert "comfy-list" in ours["loaded"] or "kohya" in ours["loaded"]
    set_options(webui, textual_inversion_own_reader=False)
    try:
        theirs = refreshed(webui)
        assert all(reason is None for _, reason in theirs["skipped"].values())
        assert len(theirs["loaded"]) < len(ours["loaded"])
        assert picture(webui, "a red circle")[0]
    finally:
        set_options(webui, textual_inversion_own_reader=True)
    assert refreshed(webui) == ours


def test_a_vae_chosen_in_the_host_is_what_training_encodes_with(webui: WebUI) -> None:
    weights = {
        key.removeprefix("first_stage_model."): value
        for key, value in load_file(TINY / "tiny.safetensors").items()
        if key.startswith("first_stage_model.")
    }
    changed = {key: value * 1.5 if key == "quant_conv.weight" else value for key, value in weights.items()}
    save_file(changed, webui.data / "models" / "VAE" / "x.safetensors")
    webui.post("/sdapi/v1/refresh-vae")
    create(webui, "by-vae")
    loss = {}
    for vae in ("None", "x.safetensors"):
        set_options(webui, sd_vae=vae)
        picture(webui, "a red circle")
        wait_for(lambda vae=vae: str(tables(webui)["vae"]).endswith(vae))
        create(webui, "by-vae", overwrite=True)
        shown = train(webui, "by-vae", steps=1, batch_size=6)
        loss[vae] = shown["points"][0][1]
    set_options(webui, sd_vae="Automatic")
    assert loss["None"] != loss["x.safetensors"]
