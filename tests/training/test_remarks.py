"""Settings and names that can hardly be meant are questioned before the first step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from textual_inversion.embedding import Embedding
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.remarks import about_changing, remarks

CONFIG = TrainingConfig("zorbx", "pictures", steps=10)


def said(config: TrainingConfig = CONFIG, captions=(), num_vectors: int = 2, embedding: Embedding | None = None) -> str:
    return " | ".join(remarks(config, captions, num_vectors, embedding, 0))


def of_length(length: float) -> Embedding:
    rows = torch.randn(2, 768)
    return Embedding("zorbx", {"clip_l": rows / rows.norm(dim=1, keepdim=True) * length})


@pytest.mark.parametrize(
    ("method", "rate"), [("pulled", "1"), ("pulled", "1e-6"), ("classic", "1"), ("classic", "5e-6"), ("directional", "100")]
)
def test_a_rate_far_outside_what_works(method: str, rate: str) -> None:
    assert "Is that rate meant?" in said(replace(CONFIG, method=method, learning_rate=rate))


@pytest.mark.parametrize("rate", ["auto", "0.005", "0.005:5, 1e-3"])
def test_a_usual_rate_is_not_questioned(rate: str) -> None:
    assert said(replace(CONFIG, method="classic", learning_rate=rate)) == ""


def test_vectors_that_drown_a_prompt() -> None:
    assert "drown the rest" in said(embedding=of_length(5000))
    assert said(embedding=of_length(0.4)) == said(embedding=of_length(3)) == ""
    assert "take 75 of the 75 places" in said(num_vectors=75)


def test_captions_that_hold_the_name() -> None:
    assert "2 captions hold the name too, such as “zorbx, blue”" in said(captions=["zorbx, blue", "a star", "a <zorbx>"])
    assert said(captions=["a star", "zorbxes"]) == ""
    assert "“red” is a word" in said(replace(CONFIG, name="red"))


def test_prompts_that_would_change_while_drawing() -> None:
    assert about_changing(["a [name], [filewords]", "(a:1.2) [b]"]) == ""
    assert "1 prompt has [a:b:0.5], [a|b] or AND in it, such as “<x> [a:b:0.5]”" in about_changing(["<x> [a:b:0.5]", "<x>"])
    assert "2 prompts have" in about_changing(["a AND b", "[a|b]"])
