"""The description of an embedding for the command line, the API and the pages: labels, their order, and JSON keys."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from textual_inversion.text import counted

#: Field -> its label, in the order in which the facts are shown.
LABELS = {
    "num_vectors": "vectors",
    "family": "family",
    "widths": "width",
    "layout": "layout",
    "dtype": "stored as",
    "stored_name": "name inside",
    "step": "step",
    "checkpoint": "checkpoint",
    "checkpoint_hash": "checkpoint hash",
    "initializer_text": "initialization text",
}
_SUMMARY = ("num_vectors", "family", "step", "checkpoint")


@dataclass(frozen=True)
class EmbeddingDescription:
    """The facts about an embedding for people and programs. An empty field or None means unknown.

    Attributes:
        num_vectors: places that the word takes in a prompt.
        family: the model family of the embedding: `SD1`, `SD2`, `SDXL`, ….
        step: optimizer steps trained so far.
        checkpoint: name of the training checkpoint.
        checkpoint_hash: first 10 hex digits of that file's sha256.
        initializer_text: the words that the vectors started from.
        layout: name of the file's layout.
        dtype: how the file stores the vectors, such as `fp16`.
        stored_name: the name inside the file.
        widths: text encoder -> width of its vectors.
        counts: text encoder -> number of its vectors.
    """

    num_vectors: int = 0
    family: str = ""
    step: int | None = None
    checkpoint: str | None = None
    checkpoint_hash: str | None = None
    initializer_text: str | None = None
    layout: str = ""
    dtype: str = ""
    stored_name: str | None = None
    widths: dict[str, int] = field(default_factory=dict, hash=False)
    counts: dict[str, int] = field(default_factory=dict, hash=False)

    @property
    def vectors(self) -> str:
        """`1 vector`, `4 vectors`; empty when the number is not known."""
        return counted(self.num_vectors, "vector") if self.num_vectors else ""

    def line(self, *more: str) -> str:
        """`4 vectors · SD1 · step 300` and then the facts in `more`. Empty facts and the step of an untrained embedding are omitted."""
        facts = (self.vectors, self.family, f"step {self.step}" if self.step else "", *more)
        return " · ".join(fact for fact in facts if fact)

    def labelled(self) -> dict[str, Any]:
        """Label -> value of the known facts, for people; the widths are one text."""
        widths = ", ".join(f"{encoder} {width}" for encoder, width in sorted(self.widths.items()))
        values = {**asdict(self), "widths": widths}
        return {label: values[key] for key, label in LABELS.items() if values[key] not in (None, "")}

    def to_dict(self) -> dict[str, Any]:
        """All facts under the keys of the command line's and of the API's JSON."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """The few facts that lists show, under the same keys."""
        return {key: getattr(self, key) for key in _SUMMARY}
