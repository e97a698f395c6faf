"""The commands about files of embeddings: list, inspect, convert, scan. Reads arguments, calls the package, prints."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.cli.common import Result, add_folder, check_embeddings, command, embeddings_folder, library_of, tell
from textual_inversion.cli.report import Bar, say
from textual_inversion.errors import ConfigError, EmbeddingError
from textual_inversion.text import counted, join_clauses

if TYPE_CHECKING:
    from textual_inversion.audit.inspect import Inspection, Report
    from textual_inversion.audit.scan import Verdict
    from textual_inversion.embedding import Embedding

_SCAN_TEXT = (
    "judge every embedding file of a folder; changes nothing unless --quarantine or --to-safetensors is given; "
    "exit status 1 if a file is unsafe, damaged or could not be checked"
)
_COMPARE_HELP = "compare with the words of this checkpoint, .safetensors of SD1, SD2 or SDXL; default: the tiny one, where it fits"
_QUARANTINE_HELP = (
    "move files that could run code, and pickles too damaged to be checked, to DIR, by default 'quarantine' in the scanned folder, "
    "'.unsafe' added to their names so that no program loads them; nothing is deleted or overwritten"
)
_TO_SAFETENSORS_HELP = (
    "write what is usable in .pt and .bin files beside them as .safetensors, a file for each word; pictures stay as they are; "
    "the originals stay too, so programs see each name twice, with the same vectors, until --replace"
)
_REPLACE_HELP = (
    "with --to-safetensors: afterwards move each original to 'originals' in the scanned folder, '.original' added to its name, so that "
    "programs load the safe file only; best for whoever uses the folder with other programs"
)


def add_files(commands: Any) -> None:
    """Add the four commands."""
    parser = command(commands, "list", _list, "show the embeddings, and why some do not fit the checkpoint")
    parser.add_argument("--checkpoint", metavar="FILE", help="judge by this checkpoint; default: by none")
    add_folder(parser)
    parser = command(commands, "inspect", _inspect, "show what an embedding file holds and whether it is any good")
    parser.add_argument("file", help="a file, or the name of an embedding in the folder of embeddings")
    parser.add_argument("--checkpoint", metavar="FILE", help=_COMPARE_HELP)
    add_folder(parser)
    _add_convert(commands)
    parser = command(commands, "scan", _scan, _SCAN_TEXT)
    parser.add_argument("folder", metavar="DIR", help="folder of embeddings, with its subfolders")
    parser.add_argument("--quarantine", nargs="?", const="", metavar="DIR", help=_QUARANTINE_HELP)
    parser.add_argument("--to-safetensors", action="store_true", help=_TO_SAFETENSORS_HELP)
    parser.add_argument("--replace", action="store_true", help=_REPLACE_HELP)


# list -----------------------------------------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> Result:
    from textual_inversion.app.engine import checkpoint_facts

    widths = checkpoint_facts(Path(options.checkpoint))[0] if options.checkpoint else None
    entries = library_of(options, widths).entries()
    rows = []
    for entry in entries:
        info = entry.info
        row: Result = {"name": entry.name, "path": str(entry.path), "reason": entry.reason}
        if info:
            row |= {"vectors": info.num_vectors, "family": info.family, "step": info.provenance.step, "word": info.word}
        rows.append(row)
        facts = ""
        if info and info.counts:
            facts = f"{counted(info.num_vectors, 'vector'):>10}  {info.family:<8} step {info.provenance.step or 0}"
        inside = f"  in {entry.path.name}" if info and info.word is not None else ""
        tell(options, f"{entry.name:<30} {facts}{inside}{'  - ' if facts and entry.reason else ''}{entry.reason}")
    if not entries:
        tell(options, f"There are no embeddings in {embeddings_folder(options)}; create one with: textual-inversion create NAME")
    return {"embeddings": rows}


# inspect --------------------------------------------------------------------------------------------------------------


def _inspect(options: argparse.Namespace) -> Result:
    path, _ = _file_called(options, str(options.file))
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


def _file_called(options: argparse.Namespace, given: str) -> tuple[Path, str | None]:
    """The file that was named by its path, or by an embedding's name; then with its word, where the file holds several."""
    from textual_inversion.formats import READ_ENDINGS

    if os.path.lexists(given) or Path(given).name != given:
        return Path(given), None
    if entry := library_of(options, None).find(given):
        return entry.path, entry.info.word if entry.info else None
    if given.lower().endswith(READ_ENDINGS):
        return Path(given), None  # that there is none is told as for every file
    raise ConfigError(f"There is no file {given!r}, and no embedding of that name in {embeddings_folder(options)}; give a path.")


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
    info, origin = report.info, report.info.provenance
    return {
        "word": info.word,
        "kind": report.kind,
        "verdict": report.verdict,
        "layout": info.layout,
        "vectors": info.num_vectors,
        "counts": info.counts,
        "widths": info.widths,
        "family": info.family,
        "dtype": info.dtype,
        "stored_name": info.stored_name,
        "step": origin.step,
        "checkpoint": origin.checkpoint_name,
        "checkpoint_hash": origin.checkpoint_hash,
        "initialization_text": origin.initializer_text,
        "fits": None if report.without_nearest and not report.misfit else not report.misfit,
        "reason": report.misfit or info.unusable,
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
        info, origin = report.info, report.info.provenance
        if info.word is not None:
            line("embedding", info.word)
        line("layout", info.layout)
        line("made for", info.family or "nothing that is known here")
        line("vectors", ", ".join(f"{info.counts[key]} of width {width} for {key}" for key, width in info.widths.items()) or "none")
        line("stored as", info.dtype or "none")
        line("name inside", info.stored_name)
        line("step", origin.step)
        line("checkpoint", f"{origin.checkpoint_name} ({origin.checkpoint_hash})" if origin.checkpoint_hash else origin.checkpoint_name)
        line("initialization text", origin.initializer_text)
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


# convert --------------------------------------------------------------------------------------------------------------


def _add_convert(commands: Any) -> None:
    text = "write an embedding in another layout; says what that cannot hold; exit status 2 if nothing was written"
    parser = command(commands, "convert", _convert, text)
    parser.add_argument("source", metavar="SRC", help="a file, or the name of an embedding in the folder of embeddings")
    parser.add_argument("destination", type=Path, metavar="DST", help="a file, whose ending chooses the layout, or a folder")
    parser.add_argument("--layout", metavar="NAME", help="name of the layout, where several have one ending; a wrong one lists them all")
    parser.add_argument("--word", metavar="W", help="which embedding, where SRC holds several")
    parser.add_argument("--overwrite", action="store_true", help="replace DST")
    add_folder(parser)


def _convert(options: argparse.Namespace) -> Result:
    from textual_inversion import formats

    source, named = _file_called(options, options.source)
    word, destination = options.word or named, options.destination
    words = [info.word for info in formats.describe_all(source) if info.word is not None]
    if len(words) > 1 and word is None:
        raise ConfigError(f"{source} holds {len(words)} embeddings ({', '.join(words[:8])}); choose one with --word.")
    embedding = formats.load(source, word=word)
    if os.path.isdir(destination):
        endings = {name.casefold(): endings for name, endings in formats.writable_layouts().items()}
        ending = endings.get((options.layout or "").casefold(), (".safetensors",))[0]
        destination = destination / f"{embedding.name}{ending}"
    path = formats.save(formats.load(source, destination.stem, word=word), destination, overwrite=options.overwrite, layout=options.layout)
    tell(options, str(path))
    lost = _lost(embedding, formats.load(path))
    if lost:
        tell(options, f"{path.name} does not hold {join_clauses(lost)}, for which its layout has no place; {source} still does.")
    return {"source": str(source), "destination": str(path), "layout": formats.describe(path).layout, "lost": lost}


def _lost(before: Embedding, after: Embedding) -> list[str]:
    """What an embedding held and its copy does not."""
    import torch

    lost = [f"the vectors for {key}" for key in before.vectors if key not in after.vectors]
    lost += [
        f"the exact vectors for {key}"
        for key, rows in before.vectors.items()
        if key in after.vectors and not torch.equal(rows, after.vectors[key])
    ]
    names = {"step": "the step", "checkpoint_name": "the checkpoint's name", "checkpoint_hash": "the checkpoint's hash"}
    names["initializer_text"] = "the initialization text"
    return lost + [text for key, text in names.items() if getattr(before.provenance, key) not in (None, getattr(after.provenance, key))]


# scan -----------------------------------------------------------------------------------------------------------------


def _scan(options: argparse.Namespace) -> Result:
    if options.replace and not options.to_safetensors:
        raise ConfigError("--replace says what --to-safetensors does with the originals; give both.")
    check_embeddings(options.folder)

    from textual_inversion.audit.judge import KINDS
    from textual_inversion.audit.scan import scan_folder

    bar = Bar()
    try:
        verdicts = list(scan_folder(options.folder, lambda done, total, name: bar.move(done, total, name)))
    finally:
        bar.close()
    rows = []
    for verdict in sorted(verdicts, key=lambda verdict: KINDS.index(verdict.kind)):  # the worst last, beside the sum
        row = {"path": str(verdict.path), "kind": verdict.kind, "sentence": verdict.sentence, **_act(options, verdict)}
        rows.append(row)
        _tell_row(options, verdict, row)
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in KINDS}
    _tell_sum(options, verdicts, rows)
    if counts["unsafe"] or counts["damaged"] or counts["unchecked"] or any("problem" in row for row in rows):
        options.status = 1
    return {"folder": str(options.folder), "counts": counts, "files": rows}


def _act(options: argparse.Namespace, verdict: Verdict) -> Result:
    """Do what was asked for with one file; what fails is told and the rest goes on."""
    from textual_inversion.audit.scan import quarantine, to_safetensors

    try:
        if options.quarantine is not None and verdict.dangerous:
            return {"moved_to": str(quarantine(verdict, options.quarantine or None))}
        if options.to_safetensors and verdict.convertible:
            return {"converted_to": [str(path) for path in to_safetensors(verdict, replace=options.replace)]}
    except EmbeddingError as error:
        return {"problem": str(error)}
    return {}


def _tell_row(options: argparse.Namespace, verdict: Verdict, row: Result) -> None:
    if verdict.ordinary:
        return  # previews, often as many as embeddings
    relative = os.path.relpath(verdict.path, verdict.folder)
    tell(options, f"{relative}: {verdict.sentence}")
    if "moved_to" in row:
        tell(options, f"    moved to {row['moved_to']}")
    if "converted_to" in row:
        tell(options, f"    converted to {', '.join(row['converted_to'])}" if row["converted_to"] else "    was converted before")
    if "problem" in row:
        tell(options, f"    left as it is: {row['problem']}")


def _tell_sum(options: argparse.Namespace, verdicts: list[Verdict], rows: list[Result]) -> None:
    from textual_inversion.audit.judge import KINDS

    told = [verdict for verdict in verdicts if not verdict.ordinary]
    counts = [f"{count} {kind}" for kind in KINDS if (count := sum(verdict.kind == kind for verdict in told))]
    ordinary = len(verdicts) - len(told)
    beside = f"; and {counted(ordinary, 'picture')} without an embedding" if ordinary else ""
    tell(options, f"{counted(len(told), 'file')}{': ' if counts else ''}{', '.join(counts)}{beside}.")
    moved, converted = (sum(key in row for row in rows) for key in ("moved_to", "converted_to"))
    dangerous = sum(verdict.dangerous for verdict in verdicts)
    convertible = sum(verdict.convertible for verdict in verdicts)
    if moved or converted:
        tell(options, f"{counted(moved, 'file')} moved aside, {converted} converted.")
    if options.quarantine is None and dangerous:
        tell(options, f"Nothing was run. --quarantine would move {counted(dangerous, 'file')} to where no program loads them.")
    if not options.to_safetensors and convertible:
        tell(options, f"--to-safetensors would convert {counted(convertible, 'file')} to the kind that no program has to unpickle.")
