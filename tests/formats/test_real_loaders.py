"""What is written here, read by the loaders that people use: diffusers, safetensors and PyTorch's own safe loading."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats import describe, load, save

ORIGIN = Provenance(step=300, checkpoint_name="tiny", checkpoint_hash="0123456789", initializer_text="a red cat")
CAT = Embedding("cat", {"clip_l": torch.randn(3, 768, generator=torch.Generator().manual_seed(1))}, ORIGIN)
ONE = Embedding("dog", {"clip_l": torch.randn(1, 768, generator=torch.Generator().manual_seed(2))})
SDXL = Embedding("both", {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}, ORIGIN)
WRITTEN = pytest.mark.parametrize(
    ("layout", "ending"), [("safetensors", ".safetensors"), ("diffusers", ".safetensors"), ("A1111 .pt", ".pt")]
)


class Pipeline(TextualInversionLoaderMixin):
    """The least that diffusers' loader needs: a real tokenizer and a real CLIP text encoder of the given width."""

    hf_device_map = None

    def __init__(self, folder: Path, width: int) -> None:
        words = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
        words += ["<|startoftext|>", "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4}
        self.text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(words), **sizes))

    @property
    def components(self) -> dict[str, Any]:
        return {"text_encoder": self.text_encoder, "tokenizer": self.tokenizer}

    def rows_of(self, word: str) -> torch.Tensor:
        """Rows of the token table that diffusers puts into a prompt for `word`."""
        tokens = self.maybe_convert_prompt(word, self.tokenizer).split()
        ids = self.tokenizer.convert_tokens_to_ids(tokens)
        return self.text_encoder.get_input_embeddings().weight.detach()[ids]


@WRITTEN
@pytest.mark.parametrize("embedding", [CAT, ONE], ids=["several", "one"])
def test_diffusers_loads_every_layout_that_is_written(tmp_path, layout, ending, embedding):
    pipeline = Pipeline(tmp_path, 768)
    path = save(embedding, tmp_path / f"file{ending}", layout=layout)
    pipeline.load_textual_inversion(str(tmp_path), weight_name=path.name, token="<kitty>", local_files_only=True)
    assert torch.equal(pipeline.rows_of("<kitty>"), embedding.vectors["clip_l"])


@pytest.mark.parametrize(("layout", "ending"), [("diffusers", ".safetensors"), ("A1111 .pt", ".pt")])
def test_diffusers_takes_the_name_as_token_where_the_layout_has_one(tmp_path, layout, ending):
    pipeline = Pipeline(tmp_path, 768)
    path = save(CAT, tmp_path / f"file{ending}", layout=layout)
    pipeline.load_textual_inversion(str(tmp_path), weight_name=path.name, local_files_only=True)
    assert torch.equal(pipeline.rows_of("cat"), CAT.vectors["clip_l"])


@pytest.mark.parametrize(("encoder", "width"), [("clip_l", 768), ("clip_g", 1280)])
def test_diffusers_loads_each_half_of_sdxl_as_its_guide_says(tmp_path, encoder, width):
    pipeline = Pipeline(tmp_path, width)
    tensors = safetensors.torch.load_file(save(SDXL, tmp_path / "both.safetensors"))
    pipeline.load_textual_inversion(tensors[encoder], token=["<s0>", "<s1>"])
    assert torch.equal(torch.cat([pipeline.rows_of(token) for token in ("<s0>", "<s1>")]), SDXL.vectors[encoder])


def test_what_diffusers_and_transformers_hold_reads_back(tmp_path):
    pipeline = Pipeline(tmp_path, 768)
    table = pipeline.text_encoder.get_input_embeddings().weight
    torch.save({"<cat-toy>": table[3:5].detach().cpu()}, tmp_path / "learned_embeds.bin")
    assert torch.equal(load(tmp_path / "learned_embeds.bin").vectors["clip_l"], table[3:5])


def test_the_safetensors_library_reads_what_is_written_and_its_files_are_read(tmp_path):
    for embedding, layout in ((CAT, "safetensors"), (CAT, "diffusers"), (SDXL, "safetensors")):
        path = save(embedding, tmp_path / "x.safetensors", layout=layout, overwrite=True)
        tensors = safetensors.torch.load_file(path)
        keys = {"safetensors": ["emb_params"], "diffusers": ["cat"]}[layout] if embedding is CAT else ["clip_g", "clip_l"]
        assert sorted(tensors) == keys
        assert all(any(torch.equal(tensor, rows) for rows in embedding.vectors.values()) for tensor in tensors.values())
        with safetensors.safe_open(str(path), "pt") as file:
            texts = file.metadata()
        safetensors.torch.save_file(tensors, tmp_path / "again.safetensors", metadata=texts)
        again = load(tmp_path / "again.safetensors", embedding.name)
        assert all(torch.equal(again.vectors[key], rows) for key, rows in embedding.vectors.items())
        assert again.provenance == ORIGIN


def test_a1111s_pt_has_its_keys_types_and_entries_byte_for_byte(tmp_path):
    """Beside a file of A1111's own saving code, which the golden file is."""
    path = save(CAT, tmp_path / "cat.pt")
    ours = torch.load(path, weights_only=True)
    theirs = torch.load(Path(__file__).parents[1] / "golden" / "a1111.pt", weights_only=True)
    assert list(ours) == list(theirs)
    assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in theirs.items()}
    assert ours["string_to_token"] == theirs["string_to_token"]
    assert list(ours["string_to_param"]) == list(theirs["string_to_param"]) == ["*"]
    assert ours["string_to_param"]["*"].dtype == theirs["string_to_param"]["*"].dtype == torch.float32
    assert not ours["string_to_param"]["*"].requires_grad
    with zipfile.ZipFile(path) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        data = next(archive.read(name) for name in archive.namelist() if name.endswith("data/0"))
    assert data == CAT.vectors["clip_l"].numpy().tobytes()


def test_the_diffusers_layout_is_written_only_when_asked_for_and_never_for_sdxl(tmp_path):
    assert describe(save(CAT, tmp_path / "a.safetensors")).layout == "safetensors"
    info = describe(save(CAT, tmp_path / "b.safetensors", layout="diffusers"))
    assert (info.layout, info.stored_name, info.provenance) == ("diffusers", "cat", ORIGIN)
    with pytest.raises(EmbeddingError, match="as many files"):
        save(SDXL, tmp_path / "c.safetensors", layout="diffusers")
    assert not (tmp_path / "c.safetensors").exists()
