"""The tiny text encoder's folder: transformers builds from it the same vocabulary and the same hidden states."""

from __future__ import annotations

from pathlib import Path

import pytest

from textual_inversion.diffusion.model import load_checkpoint
from textual_inversion.hosts.tiny_clip import write_clip_folder
from textual_inversion.prompts.tokenizer import default_tokenizer

CLIP = {"width": 64, "layers": 4, "heads": 1}  # as in tiny.yaml


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    write_clip_folder(path, **CLIP)
    return path


def test_its_sizes_are_those_of_the_yaml() -> None:
    text = (Path(__file__).resolve().parents[2] / "textual_inversion/assets/tiny/tiny.yaml").read_text(encoding="utf-8")
    assert "target: textual_inversion.hosts.tiny_clip.frozen_clip" in text
    assert all(f"        {key}: {value}\n" in text for key, value in CLIP.items())


@pytest.mark.parametrize("text", ["a red heart, on the left", "Ünïcode 3 cats' <cat-toy>"])
def test_its_vocabulary_is_ours(folder: Path, text: str) -> None:
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(str(folder))(text, add_special_tokens=False)["input_ids"]
    assert theirs == default_tokenizer().encode(text)


def test_its_text_encoder_is_the_tiny_checkpoints(folder: Path) -> None:
    from transformers import CLIPTextConfig

    from tests.support.references import transformers_clip

    encoder = load_checkpoint(device="cpu").text_encoder
    checked = transformers_clip(encoder.config, encoder.state_dict()).config  # held against ours in tests/diffusion
    made = CLIPTextConfig.from_pretrained(str(folder))
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    for key in (*keys, "hidden_act", "layer_norm_eps", "eos_token_id"):
        assert getattr(made, key) == getattr(checked, key), key
