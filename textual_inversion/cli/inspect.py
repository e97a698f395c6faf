"""The command `inspect`: shows the content of an embedding file and checks its vectors."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.audit import Kind
from textual_inversion.cli.common import Result, add_folder, command, named_file, tell
from textual_inversion.cli.report import say
from textual_inversion.description import LABELS

if TYPE_CHECKING:
    from textual_inversion.audit import EmbeddingJudgement, FileJudgement

_COMPARE_HELP = "compare with the words of this checkpoint of SD1, SD2 or SDXL; default: the tiny one, where it fits"


def add_inspect(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "inspect", _inspect, "show what an embedding file holds and whether it is any good")
    parser.add_argument("file", help="a file, or the name of an embedding in the folder of embeddings")
    parser.add_argument("--checkpoint", metavar="FILE", help=_COMPARE_HELP)
    add_folder(parser)


def _inspect(options: argparse.Namespace) -> Result:
    path, _ = named_file(options, str(options.file))
    judged = _compare(path, options.checkpoint)
    facts = {
        "file": str(judged.path),
        "bytes": judged.size,
        "sha256": judged.sha256,
        "hash": judged.infotext_hash,
        "kind": judged.kind.value,
        "verdict": judged.verdict,
        "compared_with": judged.checkpoint,
        "embeddings": [_facts(embedding) for embedding in judged.embeddings],
    }
    if judged.kind not in (Kind.OK, Kind.UNUSABLE):
        options.status = 2
        facts["error"] = f"{judged.path}: {judged.verdict}"
        say(f"textual-inversion: {facts['error']}", error=True)
    if judged.embeddings:
        _tell_inspection(options, judged)
    return facts


def _compare(path: Path, checkpoint: str | None) -> FileJudgement:
    """Inspect the file and compare it with the checkpoint; without one, with the bundled tiny checkpoint if the widths fit."""
    from textual_inversion.audit.inspect import TokenTable, inspect_file
    from textual_inversion.diffusion.model import TINY_CHECKPOINT

    if checkpoint:
        return inspect_file(path, TokenTable.read(checkpoint))
    judged = inspect_file(path)
    tiny = TokenTable.read(TINY_CHECKPOINT)
    fits = any(item.vectors and set(item.info.widths.values()) == set(tiny.widths.values()) for item in judged.embeddings)
    return inspect_file(path, tiny) if fits else judged


def _facts(embedding: EmbeddingJudgement) -> Result:
    return {
        "word": embedding.info.word,
        "kind": embedding.kind.value,
        "verdict": embedding.verdict,
        **embedding.info.description.to_dict(),
        "fits": None if embedding.without_nearest and not embedding.misfit else not embedding.misfit,
        "reason": embedding.misfit or embedding.info.unusable,
        "norms": {key: [vector.norm for vector in vectors] for key, vectors in embedding.vectors.items()},
        "norms_of_words": {key: asdict(lengths) for key, lengths in embedding.words.items()},
        "nearest": {key: [[list(near) for near in vector.nearest] for vector in vectors] for key, vectors in embedding.vectors.items()},
        "without_nearest": embedding.without_nearest,
    }


def _tell_inspection(options: argparse.Namespace, judged: FileJudgement) -> None:
    def line(label: str, text: object) -> None:
        tell(options, f"{label:<20} {'unknown' if text is None else text}")

    line("file", judged.path)
    line("bytes", judged.size)
    line("sha256", judged.sha256)
    line("hash in infotext", judged.infotext_hash)
    for embedding in judged.embeddings:
        facts = embedding.info.description
        if embedding.info.word is not None:
            line("embedding", embedding.info.word)
        line(LABELS["layout"], facts.layout)
        line("made for", facts.family or "nothing that is known here")
        vectors = [f"{facts.counts[encoder]} of width {width} for {encoder}" for encoder, width in facts.widths.items()]
        line(LABELS["num_vectors"], ", ".join(vectors) or "none")
        line(LABELS["dtype"], facts.dtype or "none")
        line(LABELS["stored_name"], facts.stored_name)
        line(LABELS["step"], facts.step)
        line(LABELS["checkpoint"], f"{facts.checkpoint} ({facts.checkpoint_hash})" if facts.checkpoint_hash else facts.checkpoint)
        line(LABELS["initializer_text"], facts.initializer_text)
        _tell_vectors(options, embedding, judged.checkpoint)
        if len(judged.embeddings) > 1:
            line("verdict", embedding.verdict)
    line("verdict", judged.verdict) if len(judged.embeddings) == 1 else line("of the file", judged.verdict)


def _tell_vectors(options: argparse.Namespace, embedding: EmbeddingJudgement, checkpoint: str) -> None:
    for encoder, words in embedding.words.items():
        tell(
            options,
            f"{'words are':<20} {words.median:.3f} long for {encoder}, 90 % of them {words.low:.3f} to {words.high:.3f} ({checkpoint})",
        )
    for encoder, vectors in embedding.vectors.items():
        for number, vector in enumerate(vectors, 1):
            length = "NaN or infinite" if vector.norm is None else "zero" if vector.zero else f"{vector.norm:.3f} long"
            near = ", ".join(f"{word} {cosine:.2f}" for word, cosine in vector.nearest)
            tell(options, f"{f'{encoder} {number}':<20} {length}{'; nearest: ' if near else ''}{near}")
    if embedding.vectors and embedding.without_nearest:
        tell(options, f"{'nearest words':<20} left out: {embedding.without_nearest}")
