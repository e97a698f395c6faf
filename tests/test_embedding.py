"""Embeddings hold fp32 rows on the CPU and refuse what is none; names are names."""

from __future__ import annotations

import pytest
import torch

from textual_inversion.embedding import Embedding, Provenance, check_name, clean_name, encoder_for_width
from textual_inversion.errors import EmbeddingError, InvalidNameError


@pytest.mark.parametrize(
    "name", ["cat", "my-cat_2", "v1.5", "a b", "猫", "été", "e\u0301te\u0301", "हिन्दी", "ไทยดี", "console", "BREAKs", "break"]
)
def test_names_that_are_fine(name):
    assert check_name(name) == name == clean_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        " cat",
        "cat ",
        "a/b",
        "..",
        ".hidden",
        "a\\b",
        "a:b",
        "<a>",
        "a,b",
        "a\nb",
        "con",
        "NUL.txt",
        "nul .txt",
        "COM¹",
        "a\u202eb",
        "x.",
        "a" * 101,
        "BREAK",
        "my BREAK-cat",
    ],
)
def test_names_that_are_refused(name):
    with pytest.raises(InvalidNameError) as error:
        check_name(name)
    assert error.value.setting == "name"
    assert check_name(clean_name(name))


@pytest.mark.parametrize(
    ("text", "name"), [("a/b", "a_b"), ("BREAK", "break"), ("(cat):1", "_cat__1"), ("...", "embedding"), ("con", "_con"), ("<b>", "_b_")]
)
def test_cleaning_keeps_what_it_can(text, name):
    assert clean_name(text) == name


@pytest.mark.parametrize(
    "vectors",
    [{}, {"clip_l": torch.ones(768)}, {"clip_l": torch.ones(0, 768)}, {"clip_l": torch.ones(1, 0)}, {"clip_l": torch.ones(76, 4)}],
)
def test_vectors_that_make_no_embedding(vectors):
    with pytest.raises(EmbeddingError):
        Embedding("x", vectors)


def test_vectors_become_plain_fp32():
    embedding = Embedding("x", {"clip_l": torch.nn.Parameter(torch.ones(3, 768, dtype=torch.float16))})
    rows = embedding.vectors["clip_l"]
    assert (rows.dtype, rows.requires_grad, rows.device.type) == (torch.float32, False, "cpu")
    assert (embedding.num_vectors, embedding.widths, embedding.family) == (3, {"clip_l": 768}, "SD1")


@pytest.mark.parametrize(
    ("widths", "family"),
    [({"clip_l": 768}, "SD1"), ({"clip_h": 1024}, "SD2"), ({"clip_l": 768, "clip_g": 1280}, "SDXL"), ({"clip_l": 64}, "64 wide")],
)
def test_family_follows_from_the_widths(widths, family):
    assert Embedding("x", {key: torch.ones(1, d) for key, d in widths.items()}).family == family


def test_encoders_by_width():
    assert [encoder_for_width(width) for width in (768, 1024, 1280, 64)] == ["clip_l", "clip_h", "clip_g", "clip_l"]


def test_with_vectors_keeps_the_rest():
    start = Embedding("x", {"clip_l": torch.ones(1, 4)}, Provenance(step=1, checkpoint_name="m"))
    later = start.with_vectors({"clip_l": torch.zeros(1, 4)}, step=2)
    assert (later.name, later.provenance) == ("x", Provenance(step=2, checkpoint_name="m"))
    assert start.provenance.step == 1
    assert start != later
