"""The command `inspect`: shows what an embedding file holds and whether it is any good."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.cli.common import Result, add_folder, command, named_file, tell
from textual_inversion.cli.report import say
from textual_inversion.description import LABELS

if TYPE_CHECKING:
    from textual_inversion.audit.inspect import Inspection, Report

_COMPARE_HELP = "compare with the words of this checkpoint, .safetensors of SD1, SD2 or SDXL; default: the tiny one, where it fits"


def add_inspect(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "inspect", _inspect, "show what an embedding file holds and whether it is any good")
    parser.add_argument("file", help="a file, or the name of an embedding in the folder of embeddings")
    parser.add_argument("--checkpoint", metavar="FILE", help=_COMPARE_HELP)
    add_folder(parser)


def _inspect(options: argparse.Namespace) -> Result:
    path, _ = named_file(options, str(options.file))
    seen = _compare(path, options.checkpoint)
    facts = {
        "file": str(seen.path),
        "bytes": seen.size,
        "sha256": seen.sha256,
        "hash": seen.infotext_hash,
        "kind": seen.kind,
        "verdict": seen.verdict,
        "compared_with": seen.checkpoint,
        "embeddings": [_facts(report) for report in seen.embeddings],
    }
    if seen.kind not in ("ok", "unusable"):
        options.status = 2
        say(f"textual-inversion: {seen.path}: {seen.verdict}", error=True)
        facts["error"] = f"{seen.path}: {seen.verdict}"
    if seen.embeddings:
        _tell_inspection(options, seen)
    return facts


def _compare(path: Path, checkpoint: str | None) -> Inspection:
    """Look into the file beside the checkpoint; without one, beside the tiny one that ships where that fits."""
    from textual_inversion.audit.inspect import TokenTable, inspect_file
    from textual_inversion.diffusion.model import TINY_CHECKPOINT

    if checkpoint:
        return inspect_file(path, TokenTable.read(checkpoint))
    seen = inspect_file(path)
    tiny = TokenTable.read(TINY_CHECKPOINT)
    fits = any(report.vectors and set(report.info.widths.values()) == set(tiny.widths.values()) for report in seen.embeddings)
    return inspect_file(path, tiny) if fits else seen


def _facts(report: Report) -> Result:
    return {
        "word": report.info.word,
        "kind": report.kind,
        "verdict": report.verdict,
        **report.info.description.to_dict(),
        "fits": None if report.without_nearest and not report.misfit else not report.misfit,
        "reason": report.misfit or report.info.unusable,
        "norms": {key: [vector.norm for vector in vectors] for key, vectors in report.vectors.items()},
        "norms_of_words": {key: {field.name: getattr(words, field.name) for field in fields(words)} for key, words in report.words.items()},
        "nearest": {key: [[list(near) for near in vector.nearest] for vector in vectors] for key, vectors in report.vectors.items()},
        "without_nearest": report.without_nearest,
    }


def _tell_inspection(options: argparse.Namespace, seen: Inspection) -> None:
    def line(label: str, text: object) -> None:
        tell(options, f"{label:<20} {'unknown' if text is None else text}")

    line("file", seen.path)
    line("bytes", seen.size)
    line("sha256", seen.sha256)
    line("hash in infotext", seen.infotext_hash)
    for report in seen.embeddings:
        facts = report.info.description
        if report.info.word is not None:
            line("embedding", report.info.word)
        line(LABELS["layout"], facts.layout)
        line("made for", facts.family or "nothing that is known here")
        vectors = [f"{facts.counts[encoder]} of width {width} for {encoder}" for encoder, width in facts.widths.items()]
        line(LABELS["num_vectors"], ", ".join(vectors) or "none")
        line(LABELS["dtype"], facts.dtype or "none")
        line(LABELS["stored_name"], facts.stored_name)
        line(LABELS["step"], facts.step)
        line(LABELS["checkpoint"], f"{facts.checkpoint} ({facts.checkpoint_hash})" if facts.checkpoint_hash else facts.checkpoint)
        line(LABELS["initializer_text"], facts.initializer_text)
        _tell_vectors(options, report, seen.checkpoint)
        if len(seen.embeddings) > 1:
            line("verdict", report.verdict)
    line("verdict", seen.verdict) if len(seen.embeddings) == 1 else line("of the file", seen.verdict)


def _tell_vectors(options: argparse.Namespace, report: Report, checkpoint: str) -> None:
    for encoder, words in report.words.items():
        tell(
            options,
            f"{'words are':<20} {words.median:.3f} long for {encoder}, 90 % of them {words.low:.3f} to {words.high:.3f} ({checkpoint})",
        )
    for encoder, vectors in report.vectors.items():
        for number, vector in enumerate(vectors, 1):
            length = "NaN or infinite" if vector.norm is None else "zero" if vector.zero else f"{vector.norm:.3f} long"
            near = ", ".join(f"{word} {cosine:.2f}" for word, cosine in vector.nearest)
            tell(options, f"{f'{encoder} {number}':<20} {length}{'; nearest: ' if near else ''}{near}")
    if report.vectors and report.without_nearest:
        tell(options, f"{'nearest words':<20} left out: {report.without_nearest}")
