"""Which file training goes on with, and what it would rather not write over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError, InvalidNameError
from textual_inversion.formats import save
from textual_inversion.training.embedding_file import find_embedding

ROWS = torch.ones(1, 768)
GOLDEN = Path(__file__).parents[1] / "golden"


def test_safetensors_comes_before_pt_and_capitals_do_not_matter(tmp_path):
    save(Embedding("cat", {"clip_l": ROWS * 2}), tmp_path / "cat.PT")
    assert find_embedding(tmp_path, "cat")[0].name == "cat.PT"
    save(Embedding("cat", {"clip_l": ROWS}), tmp_path / "cat.safetensors")
    path, embedding = find_embedding(tmp_path, "cat")
    assert (path.name, embedding.name, float(embedding.vectors["clip_l"][0, 0])) == ("cat.safetensors", "cat", 1)


@pytest.mark.parametrize(
    ("golden", "name"),
    [("lora-bundle.safetensors", "x.safetensors"), ("diffusers-several.safetensors", "x.safetensors"), ("original-several.pt", "x.pt")],
)
def test_a_file_that_holds_more_is_never_written_over(tmp_path, golden, name):
    data = (GOLDEN / golden).read_bytes()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EmbeddingError, match=r"training would write over; take one out .*--word"):
        find_embedding(tmp_path, "x")
    assert (tmp_path / name).read_bytes() == data


def test_a_lora_with_one_word_of_its_own_name_is_never_written_over(tmp_path):
    save_file({"bundle_emb.x.emb_params": ROWS, "lora_unet.lora_up.weight": torch.ones(4, 4)}, tmp_path / "x.safetensors")
    with pytest.raises(EmbeddingError) as error:
        find_embedding(tmp_path, "x")
    assert (error.value.path, error.value.field) == (tmp_path / "x.safetensors", "x")


@pytest.mark.parametrize("name", ["learned_embeds.bin", "replicate.pti"])
def test_a_kind_that_is_not_written_says_how_to_go_on(tmp_path, name):
    (tmp_path / f"x{Path(name).suffix}").write_bytes((GOLDEN / name).read_bytes())
    with pytest.raises(EmbeddingError, match=rf"convert it first: textual-inversion convert x{Path(name).suffix} x\.safetensors"):
        find_embedding(tmp_path, "x")


def test_a_picture_counts_when_it_carries_an_embedding(tmp_path):
    save(Embedding("x", {"clip_l": ROWS}), tmp_path / "x.png")
    with pytest.raises(EmbeddingError) as error:
        find_embedding(tmp_path, "x")
    assert error.value.path == tmp_path / "x.png"
    (tmp_path / "x.png").write_bytes(b"a preview")
    with pytest.raises(EmbeddingError) as error:
        find_embedding(tmp_path, "x")
    assert error.value.path == tmp_path


def test_half_an_sdxl_embedding_is_not_trained_by_itself(tmp_path):
    for name in ("x.safetensors", "x_2.safetensors"):
        (tmp_path / name).write_bytes((GOLDEN / "sdxl" / name.replace("x", "learned_embeds", 1)).read_bytes())
    with pytest.raises(EmbeddingError, match=r"one half of an SDXL embedding, the other is x_2\.safetensors"):
        find_embedding(tmp_path, "x")
    (tmp_path / "x_2.safetensors").unlink()
    assert find_embedding(tmp_path, "x")[1].widths == {"clip_l": 768}


def test_there_is_none(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(EmbeddingError, match=r"There is no embedding 'x' in .*; create it first"):
            find_embedding(folder, "x")
    with pytest.raises(InvalidNameError):
        find_embedding(tmp_path, "../x")
