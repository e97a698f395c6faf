"""New embeddings: which rows they start with, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from textual_inversion import formats
from textual_inversion.errors import ConfigError, EmbeddingError, NameTakenError
from textual_inversion.library import EmbeddingLibrary
from textual_inversion.prompts.tokenizer import default_tokenizer
from textual_inversion.training.embedding_file import create_embedding, find_embedding, initial_vectors, starts_from_zeros

TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"

SDXL_TABLES = {
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": 768,
    "conditioner.embedders.1.model.token_embedding.weight": 1280,
}


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [("small cat", "auto", ["small", "cat"]), ("small cat", 3, ["small", "cat", "small"]), ("small cat", "1", ["small"])],
)
def test_rows_are_those_of_the_words(model, text, count, words):
    ids = [model.conditioner.tokenizer.encode(word)[0] for word in words]
    assert torch.equal(initial_vectors(model.text_encoder.token_table, text, count), model.text_encoder.token_table[ids])


@pytest.mark.parametrize("count", [1, 2, "auto"])
def test_without_words_they_are_zeros(model, count):
    vectors = initial_vectors(model.text_encoder.token_table, "", count)
    assert vectors.shape == (1 if count == "auto" else count, 64)
    assert not vectors.any()


@pytest.mark.parametrize("count", [0, 76, -1, "many", "", None])
def test_counts_that_are_none(model, count):
    with pytest.raises(ConfigError) as error:
        initial_vectors(model.text_encoder.token_table, "cat", count)
    assert error.value.setting == "num_vectors"


def test_a_name_that_is_taken_in_any_layout(model, folder):
    formats.save(formats.load(folder / "thing.safetensors"), folder / "other.pt")
    for name in ("thing", "other"):
        with pytest.raises(NameTakenError) as error:
            create_embedding(model, name, "cat", 1, folder)
        assert error.value.path.stem == name
    assert formats.load(folder / "thing.safetensors").num_vectors == 2


@pytest.mark.parametrize("ending", [".pt", ".PT", ".png"])
def test_overwriting_leaves_one_file_that_the_name_means(model, folder, ending):
    old = formats.load(folder / "thing.safetensors").with_vectors({"clip_l": torch.ones(3, 64)})
    written = formats.save(old, folder / f"other{ending.lower()}").rename(folder / f"other{ending}")
    path = create_embedding(model, "other", "cat", 1, folder, overwrite=True)
    library = EmbeddingLibrary([folder])
    assert [entry.path for entry in library.entries() if entry.name == "other"] == [path]
    assert library.get("other").num_vectors == find_embedding(folder, "other")[1].num_vectors == 1
    assert written.exists() is (ending == ".png")  # a picture of that name is its preview


def test_overwriting_keeps_what_holds_more_than_the_name_means_or_cannot_be_read(model, folder):
    torch.save({"cat-toy": torch.ones(768), "dog": torch.ones(768)}, folder / "other.bin")
    (folder / "other.pt").write_bytes(b"<html>")
    create_embedding(model, "other", "cat", 1, folder, overwrite=True)
    names = {entry.name: entry.path.name for entry in EmbeddingLibrary([folder]).entries() if entry.usable}
    assert names == {"cat-toy": "other.bin", "dog": "other.bin", "other": "other.safetensors", "thing": "thing.safetensors"}
    assert (folder / "other.pt").read_bytes() == b"<html>"


def test_what_cannot_be_replaced_is_told(model, folder, monkeypatch):
    formats.save(formats.load(folder / "thing.safetensors"), folder / "other.pt")

    unlink = Path.unlink

    def refuses(path, **more):
        if path.suffix == ".pt":
            raise PermissionError(13, "Permission denied")
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", refuses)
    with pytest.raises(EmbeddingError, match=r"other\.pt of the same name cannot be deleted"):
        create_embedding(model, "other", "cat", 1, folder, overwrite=True)


@pytest.mark.parametrize(("text", "unknown"), [("cat", False), ("", False), ("dog", True)])
def test_words_that_the_checkpoint_does_not_know(tmp_path, checkpoint, text, unknown):
    tensors = load_file(checkpoint)
    table = tensors[TABLE]
    table[default_tokenizer().encode("dog")] = 0
    save_file(tensors, tmp_path / "poor.safetensors")
    path = create_embedding(tmp_path / "poor.safetensors", "word", text, "auto", tmp_path)
    assert starts_from_zeros(path, text) is unknown


def test_a_file_of_another_kind_says_nothing_of_words(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    assert not starts_from_zeros(tmp_path / "x.json", "cat")


def test_a_folder_that_cannot_be_made(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EmbeddingError) as error:
        create_embedding(model, "cat", "cat", 1, tmp_path / "file")
    assert error.value.path == tmp_path / "file"


def test_the_file_of_a_checkpoint_is_enough(model, checkpoint, folder):
    create_embedding(checkpoint, "other", "small cat", 2, folder)
    made, other = formats.load(folder / "thing.safetensors"), formats.load(folder / "other.safetensors")
    assert torch.equal(made.vectors["clip_l"], other.vectors["clip_l"])
    assert made.provenance == other.provenance


def test_with_sdxl_both_text_encoders_get_theirs(tmp_path):
    tables = {key: torch.randn(49408, width).half() for key, width in SDXL_TABLES.items()}
    save_file(tables, tmp_path / "xl.safetensors")
    path = create_embedding(tmp_path / "xl.safetensors", "both", "cat", 1, tmp_path)
    loaded = formats.load(path)
    cat = default_tokenizer().encode("cat")[0]
    assert loaded.family == "SDXL"
    for encoder, table in zip(("clip_l", "clip_g"), tables.values(), strict=True):
        assert torch.equal(loaded.vectors[encoder][0], table[cat].float())


@pytest.mark.parametrize(("there", "wanted"), [("zorb", "Zorb"), ("ZORB", "zorb"), ("café", "CAFÉ")])
def test_a_name_that_prompts_do_not_tell_apart_is_taken(checkpoint, tmp_path, there, wanted):
    create_embedding(checkpoint, there, "cat", 1, tmp_path)
    with pytest.raises(NameTakenError, match="prompts do not tell capitals apart"):
        create_embedding(checkpoint, wanted, "cat", 1, tmp_path)
    path = create_embedding(checkpoint, wanted, "cat", 2, tmp_path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "one name, one file"
