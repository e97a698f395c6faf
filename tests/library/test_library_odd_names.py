"""Files of other people with odd names: what is listed as usable can be named in a prompt."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from textual_inversion.embedding import is_spelling
from textual_inversion.library import EmbeddingLibrary
from textual_inversion.prompts.chunks import chunk_prompt
from textual_inversion.prompts.names import unknown_names
from textual_inversion.prompts.tokenizer import default_tokenizer

ODD_NAMES = [
    *("by (someone)", "it's", "one, two", "50%", "[anime] style", "#hash", "(bracket", "bracket)", "a(b)c", "a:1.2", "a;b", "a&b", "a+b"),
    *("{braces}", "dollar$", "at@home", "tilde~", "equals=", "exclaim!", "under_score", "dash-", "-dash", "v1.5", "a..b", "1girl", "100"),
    *(
        "A",
        "red",
        "AND",
        "BREAK",
        "BREAK dance",
        "lora",
        "lora:x",
        "ä",
        "a\u0308o",
        "ﬁne",
        "名前",
        "имя",
        "اسم",
        "🐈 cat",
        "  x",
        "a  b",
        "<cat>",
    ),
    *(
        "a<b",
        "con",
        "x" * 120,
        "learned_embeds",
        "it`s",
        "quote”s",
        "semi；",
        "comma，b",
        "a\tb",
        "[[x]]",
        "((x))",
        "(x:1.3)",
        "\\\\x",
        "_",
        "$",
    ),
]


def escaped(name: str) -> str:
    """The name as A1111's cards write it."""
    return "".join(f"\\{sign}" if sign in "\\()[]" else sign for sign in name)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> EmbeddingLibrary:
    folder = tmp_path_factory.mktemp("embeddings")
    for name in ODD_NAMES:
        save_file({"emb_params": torch.randn(2, 64) * 0.07}, folder / f"{name}.safetensors")
    return EmbeddingLibrary([folder])


def spliced(prompt: str, names: dict[str, int]) -> set[str]:
    return {splice.name for chunk in chunk_prompt(prompt, default_tokenizer(), names) for splice in chunk.splices}


def test_every_usable_file_can_be_named(library: EmbeddingLibrary) -> None:
    names = dict.fromkeys(library.as_mapping(), 2)
    usable = [entry for entry in library.entries() if entry.usable]
    assert len(usable) > len(ODD_NAMES) * 0.6
    for entry in usable:
        for prompt in (f"a photo of <{entry.name}>, blue", f"<{entry.name}:1.2>", f"a photo of {escaped(entry.name)} in blue"):
            found = spliced(prompt, names)
            assert entry.name in {library.find(name).name for name in found}, (prompt, found)


def test_the_name_of_the_file_works_as_well(library: EmbeddingLibrary) -> None:
    names = dict.fromkeys(library.as_mapping(), 2)
    spellings = library.spellings()
    assert {"by (someone)", "it's", "one, two", "50%", "[anime] style", "#hash"} <= set(spellings)
    for stem in spellings:
        if any(sign in stem for sign in "<>"):
            continue  # they would end the tag
        assert is_spelling(stem)
        assert library.as_mapping()[stem].num_vectors == 2
        for prompt in (f"<{stem}>", f"photo of <{stem}:1.2>, blue", f"photo of {escaped(stem)} in blue"):
            found = spliced(prompt, names)
            assert stem in {library.find(name).path.stem for name in found}, (prompt, found)
            assert unknown_names([prompt], names) == []


def test_the_others_say_why_not(library: EmbeddingLibrary) -> None:
    assert all(entry.reason for entry in library.entries() if not entry.usable)


@pytest.mark.parametrize(("first", "second"), [("Zorb", "zorb"), ("a_b", "a_ b"), ("a\u0308x", "äx"), ("v 1.5", "v1.5"), ("x y", "x  y")])
def test_of_two_names_that_prompts_read_alike_one_says_so(tmp_path, first: str, second: str) -> None:
    for name in (first, second):
        save_file({"emb_params": torch.randn(2, 64) * 0.07}, tmp_path / f"{name}.safetensors")
    entries = EmbeddingLibrary([tmp_path]).entries()
    assert sorted(entry.usable for entry in entries) == [False, True]
    assert any("prompts do not tell it apart from" in entry.reason for entry in entries)
