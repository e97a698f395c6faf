"""The public names are a promise: adding or removing one is a decision."""

from __future__ import annotations

import inspect

import pytest

import textual_inversion

PUBLIC = [
    "Embedding",
    "EmbeddingLibrary",
    "FileInfo",
    "GenerationSettings",
    "Provenance",
    "StableDiffusion",
    "TextualInversionError",
    "TrainingConfig",
    "create_embedding",
    "describe",
    "generate",
    "load",
    "load_checkpoint",
    "save",
    "train",
    "train_together",
]


def test_the_public_names_are_these_and_at_most_twenty() -> None:
    assert sorted(textual_inversion.__all__) == sorted(PUBLIC)
    assert len(PUBLIC) <= 20


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(textual_inversion, name)
    assert inspect.isclass(value) or inspect.isfunction(value)
    assert len((value.__doc__ or "").split()) >= 3


@pytest.mark.parametrize("name", [name for name in PUBLIC if name[0].islower()])
def test_each_function_says_what_it_takes_gives_and_refuses(name: str) -> None:
    text = getattr(textual_inversion, name).__doc__
    assert "Raises" in text or "raises" in text or "sentence" in text


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        textual_inversion.nothing  # noqa: B018
