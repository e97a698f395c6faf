"""The learned artefact: vectors for each text encoder, their provenance, and the names that an embedding can have.

Legend for shapes in the whole package: b batch, c channels, h w latent size, l tokens, d width, n vectors.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from textual_inversion.description import EmbeddingDescription
from textual_inversion.errors import EmbeddingError, InvalidNameError
from textual_inversion.settings.creation import MAX_VECTORS

#: Width of a token table -> its text encoder.
ENCODER_BY_WIDTH = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
#: Set of text encoders -> the model family that uses this set. Prompts here support only the first two.
_FAMILIES = {
    frozenset({"clip_l", "clip_g"}): "SDXL",
    frozenset({"clip_g"}): "SDXL",
    frozenset({"clip_l", "clip_g", "t5"}): "SD3",
    frozenset({"clip_l", "clip_g", "t5", "llama"}): "HiDream",
    frozenset({"clip_l", "t5"}): "Flux",
    frozenset({"clip_l", "llama"}): "HunyuanVideo",
    frozenset({"t5"}): "PixArt or Chroma",
    frozenset({"gemma"}): "Sana",
}
MAX_NAME_LENGTH = 100
_ODD = re.compile(r"[^\w.\- ]")
_BREAK = re.compile(r"\bBREAK\b")  # begins a new chunk of a prompt
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|(com|lpt)[\d¹²³]) *(\..*)?")


def encoder_for_width(width: int) -> str:
    """Name of the text encoder whose token table is `width` wide; unusual widths count as SD1's `clip_l`."""
    return ENCODER_BY_WIDTH.get(width, "clip_l")


def family_of(widths: dict[str, int]) -> str:
    """The model family for these widths per text encoder: `SD1`, `SD2`, `SDXL`, `SD3`, …, or `<d> wide` for unusual sizes."""
    if family := _FAMILIES.get(frozenset(widths)):
        return family
    if len(widths) > 1:
        return f"a model with {' and '.join(sorted(widths))}"
    known = {768: "SD1", 1024: "SD2"}
    return next((known.get(width, f"{width} wide") for width in widths.values()), "")


def check_name(name: str) -> str:
    """Return `name` if it can be a file name and a word of a prompt.

    Raises:
        InvalidNameError: empty, over 100 characters, a path, reserved by Windows or prompts (`BREAK`), or has characters other than
            letters with their accents, digits, `._-` and space.
    """
    if not name or name != name.strip():
        raise InvalidNameError(f"The name {name!r} is empty or begins or ends with a space; give a word such as 'my-cat'.", setting="name")
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidNameError(f"The name has {len(name)} characters; {MAX_NAME_LENGTH} are the most.", setting="name")
    if "/" in name or "\\" in name or name.startswith("."):
        raise InvalidNameError(f"The name {name!r} has a path in it; give a name only, and choose the folder separately.", setting="name")
    if _without_odd(name) != name or _RESERVED.fullmatch(name) or _BREAK.search(name) or name.endswith("."):
        raise InvalidNameError(f"The name {name!r} cannot be used; letters, digits, '.', '_', '-' and spaces can.", setting="name")
    return name


def clean_name(text: str) -> str:
    """Turn any text, such as a file's stem, into a name that passes `check_name`; characters that names cannot contain become `_`."""
    name = _BREAK.sub("break", _without_odd(text[:MAX_NAME_LENGTH]).strip(". "))
    if not name:
        return "embedding"
    return f"_{name}"[:MAX_NAME_LENGTH].strip(". ") if _RESERVED.fullmatch(name) else name


def _without_odd(text: str) -> str:
    """Replace forbidden characters by `_`. Combining marks stay: many scripts use them for vowels, some systems for accents."""
    return _ODD.sub(lambda match: match[0] if unicodedata.category(match[0]).startswith("M") else "_", text)


def name_in_file(stem: str, word: str | None) -> str:
    """The name for prompts of an embedding in a file: the file's stem, or the word that the file gives the embedding."""
    return clean_name(stem) if word is None else word_name(word)


def is_spelling(stem: str) -> bool:
    """Whether prompts can also name an embedding by this name of its file, which names proper cannot have.

    One with a colon would be taken for a name with a weight, and one with other white space than single spaces for another name.
    """
    is_plain = stem == " ".join(stem.split()) and ":" not in stem
    return bool(stem) and is_plain and clean_name(stem) != stem and not _BREAK.search(stem)


def fold_name(name: str) -> str:
    """The same text for all spellings of a name: prompts do not tell capitals apart, and some systems store accents as own characters."""
    return unicodedata.normalize("NFC", name).casefold()


def word_name(text: str) -> str:
    """A word as a name for prompts: diffusers' token `<cat-toy>` becomes `cat-toy`."""
    inner = text[1:-1] if text.startswith("<") and text.endswith(">") else text
    return clean_name(inner or text)


@dataclass(frozen=True)
class Provenance:
    """Where an embedding's vectors came from; every field may be unknown.

    Attributes:
        step: optimizer steps trained so far (0 or more).
        checkpoint_name: file name, without ending, of the checkpoint it was trained on.
        checkpoint_hash: first 10 hex digits of that checkpoint file's sha256, as A1111 writes it.
        initializer_text: the words that the vectors started from.
    """

    step: int | None = None
    checkpoint_name: str | None = None
    checkpoint_hash: str | None = None
    initializer_text: str | None = None

    def describe(self, num_vectors: int, family: str, **more: Any) -> EmbeddingDescription:
        """The description of vectors with this provenance; `more` sets further fields."""
        origin = (self.step, self.checkpoint_name, self.checkpoint_hash, self.initializer_text)
        return EmbeddingDescription(num_vectors, family, *origin, **more)


@dataclass(frozen=True, eq=False)  # tensors have no single truth value, so embeddings compare by identity
class Embedding:
    """A learned word: `num_vectors` rows for each text encoder that it was made for.

    Attributes:
        name: the placeholder token, as typed in prompts.
        vectors: text encoder (`clip_l`, `clip_h`, `clip_g`) -> fp32 tensor [n, d] on the CPU.
        provenance: where the vectors came from.

    Raises:
        EmbeddingError: no vectors, a tensor that is not [n, d], or more than 75 vectors.
    """

    name: str
    vectors: dict[str, torch.Tensor]
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        if not self.vectors:
            raise EmbeddingError(f"The embedding {self.name!r} holds no vectors.")
        for encoder, tensor in self.vectors.items():
            if tensor.ndim != 2 or 0 in tensor.shape:
                raise EmbeddingError(
                    f"{self.name!r} has a tensor of shape {list(tensor.shape)} for {encoder}; expected [vectors, width].", field=encoder
                )
            if tensor.shape[0] > MAX_VECTORS:
                raise EmbeddingError(f"{self.name!r} has {tensor.shape[0]} vectors; a prompt's chunk holds {MAX_VECTORS}.", field=encoder)
        object.__setattr__(self, "vectors", {key: value.detach().to("cpu", torch.float32) for key, value in self.vectors.items()})

    @property
    def num_vectors(self) -> int:
        """Places that the word takes in a prompt: the largest count over its text encoders."""
        return max(tensor.shape[0] for tensor in self.vectors.values())

    @property
    def widths(self) -> dict[str, int]:
        """Text encoder -> width d of its vectors."""
        return {encoder: tensor.shape[1] for encoder, tensor in self.vectors.items()}

    @property
    def family(self) -> str:
        """`SD1`, `SD2`, `SDXL`, …, as in `family_of`."""
        return family_of(self.widths)

    @property
    def description(self) -> EmbeddingDescription:
        """The facts for people and programs."""
        counts = {encoder: tensor.shape[0] for encoder, tensor in self.vectors.items()}
        return self.provenance.describe(self.num_vectors, self.family, widths=self.widths, counts=counts)

    def for_encoders(self, widths: Mapping[str, int]) -> Embedding:
        """The same, with its vectors under the name that a checkpoint's only text encoder has.

        Files for one text encoder do not name it, and their width tells no encoder where that is an unusual one.

        Args:
            widths: text encoder -> width, of the checkpoint.
        """
        if len(widths) != 1 or len(self.vectors) != 1 or set(self.widths.values()) != set(widths.values()):
            return self
        return replace(self, vectors=dict(zip(widths, self.vectors.values())))

    def with_vectors(self, vectors: dict[str, torch.Tensor], **provenance: object) -> Embedding:
        """A copy with other vectors and, by keyword, other fields of the provenance."""
        return replace(self, vectors=vectors, provenance=replace(self.provenance, **provenance))  # type: ignore[arg-type]
