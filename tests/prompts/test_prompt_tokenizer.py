"""The tokenizer against transformers' CLIP tokenizer on the same merges."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textual_inversion.prompts.tokenizer import END, MERGES_FILE, START, VOCABULARY_SIZE, Tokenizer, default_tokenizer

TEXTS = [
    "",
    " ",
    "a photo of a cat",
    "A PHOTO of a Cat",
    "  a \t photo\n\nof\u00a0a   cat ",
    "it's you're we've I'm they'll he'd don't DON'T o'clock ''s '",
    "cat,dog, bird,,fish . . . !!! ?!",
    "1girl, 2boys, 1024x768, 3.14159, 10,000",
    "masterpiece, best quality, (detailed:1.2), [blurry]",
    "sakura-b my_cat <cat-toy> :) ;-) --- ___",
    "naïve café Ångström e\u0301 ﬁ ﬂ",
    "красная площадь",
    "桜の花 紫色 한국어",
    "مرحبا بالعالم שלום",
    "😀😃 👩‍👩‍👧 🇩🇪 ♥ ★",
    "½ ² Ⅷ ①",
    "trailing <|endoftext|> and <|startoftext|> <|ENDOFTEXT|>",
    "!<|endoftext|>!",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" * 300,
    "紫" * 100,
    "\x00 \x07 \x1b[0m \x85 \u200b \ufeff",
    "</w> a</w>b",
]


def expected(reference: Any, text: str) -> list[int]:
    return list(reference(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("text", TEXTS)
def test_encodes_as_transformers(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    assert tokenizer.encode(text) == expected(reference, text)


# Left out: characters younger than Unicode 3.2, which the libraries learn about at different times, and the capital sigma (see below).
letters = st.characters(exclude_categories=["Cn", "Cs", "Co"], exclude_characters="Σ").filter(
    lambda letter: unicodedata.ucd_3_2_0.category(letter) != "Cn"
)
words = st.one_of(st.text(letters, max_size=12), st.sampled_from(TEXTS), st.text("abcdeABC '.,-!()[]:0123\t", max_size=20))


@settings(max_examples=400, deadline=None)
@given(st.lists(words, max_size=6).map(" ".join))
def test_encodes_any_text_as_transformers(reference: Any, text: str) -> None:
    assert default_tokenizer().encode(text) == expected(reference, text)


def test_every_token_of_the_vocabulary_has_its_known_place(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.vocabulary) == len(set(tokenizer.vocabulary)) == VOCABULARY_SIZE
    assert tokenizer.vocabulary[:2] == ("!", '"')
    assert (tokenizer.vocabulary[START], tokenizer.vocabulary[END]) == ("<|startoftext|>", "<|endoftext|>")
    assert (tokenizer.start, tokenizer.end) == (49406, 49407)
    assert tokenizer.encode("a photo of a cat,") == [320, 1125, 539, 320, 2368, 267]  # ids that CLIP's users know


def test_whole_words_come_back_as_their_own_token(tokenizer: Tokenizer) -> None:
    plain = {i: token[:-4] for i, token in enumerate(tokenizer.vocabulary) if re.fullmatch("[a-z]+</w>", token)}
    assert len(plain) > 30000
    assert [word for i, word in plain.items() if tokenizer.encode(word) != [i]] == []


def test_capital_sigma_at_the_end_of_a_word_is_lowered_as_python_does(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("ΟΔΟΣ") == tokenizer.encode("οδος")


@pytest.mark.parametrize(
    ("text", "back"),
    [
        ("A  photo of\na cat", "a photo of a cat"),
        ("cat, dog", "cat , dog"),
        ("naïve 桜 😀", "naïve 桜 😀"),
        ("", ""),
    ],
)
def test_decodes(tokenizer: Tokenizer, text: str, back: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == back


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_decoding_loses_nothing_but_case_and_space(text: str) -> None:
    tokenizer = default_tokenizer()
    back = tokenizer.decode(tokenizer.encode(text))
    clean = unicodedata.normalize("NFC", text).lower()
    assert "".join(back.split()) == "".join(clean.split())


def test_decodes_bytes_that_are_no_text_and_special_tokens(tokenizer: Tokenizer) -> None:
    first_byte_of_an_emoji = tokenizer.vocabulary.index("ð")
    assert tokenizer.decode([first_byte_of_an_emoji]) == "\ufffd"
    assert tokenizer.decode([START, *tokenizer.encode("cat"), END]) == "<|startoftext|>cat <|endoftext|>"


def test_word_shows_a_token_as_text(tokenizer: Tokenizer) -> None:
    assert [tokenizer.word(i) for i in tokenizer.encode("cat,")] == ["cat", ","]
    assert tokenizer.word(END) == "<|endoftext|>"


def test_a_lone_surrogate_is_encoded_and_not_an_error(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("\ud800 cat")[-1] == tokenizer.encode("cat")[0]


def test_loads_quickly_and_once() -> None:
    lines = gzip.decompress(MERGES_FILE.read_bytes()).decode().splitlines()
    fastest = min(_seconds_to_build(lines) for _ in range(3))
    assert fastest < 0.15
    assert default_tokenizer() is default_tokenizer()


def _seconds_to_build(lines: list[str]) -> float:
    start = time.perf_counter()
    Tokenizer(lines)
    return time.perf_counter() - start


def test_prompts_need_no_torch() -> None:
    modules = ["tokenizer", "emphasis", "names", "chunks", "templates"]
    code = "; ".join([f"import textual_inversion.prompts.{name}" for name in modules] + ["import sys", "sys.exit('torch' in sys.modules)"])
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
