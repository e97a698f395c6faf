"""What a new embedding starts from."""

from __future__ import annotations

from dataclasses import dataclass

from textual_inversion.settings.schema import AUTO, Settings, setting

MAX_VECTORS = 75  # one chunk of a prompt
AUTO_VECTORS = 4  # where neither a number nor words are given
FOUND_WORDS = "words that training finds"


def wants_search(initializer_text: str | None) -> bool:
    """Whether training is to find the words that the embedding starts from."""
    return (initializer_text or "").strip().lower() == AUTO


@dataclass(frozen=True)
class NewEmbedding(Settings):
    """What Create asks for.

    Raises:
        ConfigError: with the name of the first setting that cannot be used.
    """

    name: str = setting(
        label="Name",
        hint="The new word. Letters, digits, . _ - and spaces; best one that means nothing yet.",
        help="the new word: letters, digits, '.', '_', '-' and spaces, at most 100",
        saved=False,
    )
    initializer_text: str = setting(
        "*",
        label="Initialization text",
        hint="Words to start from: “girl” for a character, “tree” for a tree. auto = training finds words that describe the pictures.",
        help="words whose vectors it starts from, such as 'cat'; `auto` = words that describe the pictures, which training finds before"
        " its first step; empty = zeros",
        option="init",
        saved=False,
    )
    num_vectors: int | str = setting(
        "auto",
        minimum=1,
        maximum=MAX_VECTORS,
        word="auto",
        offered=("auto", "1", "2", "3", "4", "6", "8", "12", "16"),
        label="Number of vectors per token",
        title="Number of vectors per token",
        hint="1–4 for simple things, 8–16 for complex characters. Each takes one of a prompt’s 75 places. auto: one for each word, or 4.",
        help="how many vectors: {range}, or `auto` for one for each token of the words, 4 where those are `auto` too",
        option="vectors",
        metavar="N",
    )
    overwrite: bool = setting(
        False,
        label="Overwrite Old Embedding",
        hint="Begin anew if the name is taken; what it has learned is lost.",
        help="begin anew if the name is taken, by a .pt or .bin too; what that embedding has learned is lost",
        saved=False,
    )

    @property
    def origin(self) -> str:
        """What it starts from, for a sentence."""
        if wants_search(self.initializer_text):
            return FOUND_WORDS
        return f"“{self.initializer_text}”" if self.initializer_text else "zeros"
