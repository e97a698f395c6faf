"""SD1 embeddings on SDXL: the vectors for the first text encoder stay, words stand for the second one, and what cannot be done is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from textual_inversion import formats
from textual_inversion.cli import main
from textual_inversion.diffusion.checkpoint import token_tables
from textual_inversion.diffusion.conditioning import VectorTable
from textual_inversion.diffusion.model import TINY_CHECKPOINTS
from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import CheckpointError, ConfigError, EmbeddingError, TextualInversionError
from textual_inversion.prompts.tokenizer import default_tokenizer
from textual_inversion.training.second_half import for_sdxl

SDXL = TINY_CHECKPOINTS["sdxl"]
WIDTHS = {"clip_l": 64, "clip_g": 64}


def of_sd1(count: int = 3, text: str | None = "red circle", width: int = 64) -> Embedding:
    vectors = torch.randn(count, width, generator=torch.Generator().manual_seed(1))
    return Embedding("zorb", {"clip_l": vectors}, Provenance(7, "tiny", "0123456789", text))


@pytest.mark.parametrize(("words", "expected"), [("", "red circle red"), ("blue", "blue blue blue"), ("a pink square x", "a pink square")])
def test_the_second_half_are_words_of_the_checkpoint(words: str, expected: str) -> None:
    before = of_sd1()
    after = for_sdxl(before, SDXL, words)
    assert torch.equal(after.vectors["clip_l"], before.vectors["clip_l"])
    rows = token_tables(SDXL)["clip_g"][default_tokenizer().encode(expected)].float()
    assert torch.equal(after.vectors["clip_g"], rows)
    assert (after.family, after.provenance.step, after.provenance.checkpoint_hash) == ("SDXL", 7, None)
    assert VectorTable.of({"zorb": after}, WIDTHS, "cpu").vectors.shape == (3, 128)
    with pytest.raises(EmbeddingError, match="made for"):  # as it was, no prompt takes it
        VectorTable.of({"zorb": before}, WIDTHS, "cpu")


@pytest.mark.parametrize(("embedding", "checkpoint", "kind", "words"), [
    (of_sd1(text=None), SDXL, ConfigError, "Nothing says in words"),
    (of_sd1(text="auto"), SDXL, ConfigError, "Nothing says in words"),
    (of_sd1(), TINY_CHECKPOINTS["sd1"], CheckpointError, "expected a checkpoint of SDXL"),
    (of_sd1(width=768), SDXL, EmbeddingError, "clip_l 768 wide"),
    (for_sdxl(of_sd1(), SDXL), SDXL, EmbeddingError, "clip_g 64 wide"),
])  # fmt: skip
def test_what_cannot_be_done_is_said(embedding: Embedding, checkpoint: Path, kind: type[TextualInversionError], words: str) -> None:
    with pytest.raises(kind, match=words):
        for_sdxl(embedding, checkpoint)


def test_convert_makes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "zorb.safetensors", tmp_path / "xl.safetensors"
    formats.save(of_sd1(), source)
    assert main(["convert", str(source), str(target), "--words", "blue"]) == 2
    assert "--for-sdxl" in capsys.readouterr().err
    assert main(["convert", str(source), str(target), "--for-sdxl", str(SDXL), "--words", "blue"]) == 0
    made = formats.load(target)
    assert (made.name, made.widths, made.provenance.initializer_text) == ("xl", WIDTHS, "blue")
