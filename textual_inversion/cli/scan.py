"""The command `scan`: judges every embedding file of a folder, moves dangerous ones aside and converts the usable."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from textual_inversion.audit import Kind
from textual_inversion.cli.common import Result, check_embeddings, command, tell
from textual_inversion.cli.report import Bar
from textual_inversion.errors import ConfigError, EmbeddingError
from textual_inversion.text import counted

if TYPE_CHECKING:
    from textual_inversion.audit.scan import ScannedFile

_SCAN_TEXT = (
    "judge every embedding file of a folder; changes nothing unless --quarantine or --to-safetensors is given; "
    "exit status 1 if a file is unsafe, damaged or could not be checked"
)
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


def add_scan(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "scan", _scan, _SCAN_TEXT)
    parser.add_argument("folder", metavar="DIR", help="folder of embeddings, with its subfolders")
    parser.add_argument("--quarantine", nargs="?", const="", metavar="DIR", help=_QUARANTINE_HELP)
    parser.add_argument("--to-safetensors", action="store_true", help=_TO_SAFETENSORS_HELP)
    parser.add_argument("--replace", action="store_true", help=_REPLACE_HELP)


def _scan(options: argparse.Namespace) -> Result:
    if options.replace and not options.to_safetensors:
        raise ConfigError("--replace says what --to-safetensors does with the originals; give both.", setting="replace")
    check_embeddings(options.folder)

    from textual_inversion.audit.scan import scan_folder

    bar = Bar()
    try:
        files = list(scan_folder(options.folder, lambda done, total, name: bar.move(done, total, name)))
    finally:
        bar.close()
    rows = []
    for file in sorted(files, key=lambda file: file.kind.severity):  # the worst last, beside the totals
        row = {"path": str(file.path), "kind": file.kind.value, "sentence": file.verdict, **_act(options, file)}
        rows.append(row)
        _tell_row(options, file, row)
    _tell_totals(options, files, rows)
    if any(file.kind.severity >= Kind.DAMAGED.severity for file in files) or any("problem" in row for row in rows):
        options.status = 1
    counts = {kind.value: sum(file.kind is kind for file in files) for kind in Kind}
    return {"folder": str(options.folder), "counts": counts, "files": rows}


def _act(options: argparse.Namespace, file: ScannedFile) -> Result:
    """Quarantine or convert one file if the options ask for it. Returns keys to add to its JSON; a failure is reported as `problem`."""
    from textual_inversion.audit.scan import quarantine, to_safetensors

    try:
        if options.quarantine is not None and file.dangerous:
            return {"moved_to": str(quarantine(file, options.quarantine or None))}
        if options.to_safetensors and file.convertible:
            return {"converted_to": [str(path) for path in to_safetensors(file, replace=options.replace)]}
    except EmbeddingError as error:
        return {"problem": str(error)}
    return {}


def _tell_row(options: argparse.Namespace, file: ScannedFile, row: Result) -> None:
    if file.ordinary:
        return  # previews, often as many as embeddings
    relative = os.path.relpath(file.path, file.folder)
    tell(options, f"{relative}: {file.verdict}")
    if "moved_to" in row:
        tell(options, f"    moved to {row['moved_to']}")
    if "converted_to" in row:
        tell(options, f"    converted to {', '.join(row['converted_to'])}" if row["converted_to"] else "    was converted before")
    if "problem" in row:
        tell(options, f"    left as it is: {row['problem']}")


def _tell_totals(options: argparse.Namespace, files: list[ScannedFile], rows: list[Result]) -> None:
    listed = [file for file in files if not file.ordinary]
    counts = [f"{count} {kind}" for kind in Kind if (count := sum(file.kind is kind for file in listed))]
    ordinary = len(files) - len(listed)
    pictures = f"; and {counted(ordinary, 'picture')} without an embedding" if ordinary else ""
    tell(options, f"{counted(len(listed), 'file')}{': ' if counts else ''}{', '.join(counts)}{pictures}.")
    moved, converted = (sum(key in row for row in rows) for key in ("moved_to", "converted_to"))
    dangerous = sum(file.dangerous for file in files)
    convertible = sum(file.convertible for file in files)
    if moved or converted:
        tell(options, f"{counted(moved, 'file')} moved aside, {converted} converted.")
    if options.quarantine is None and dangerous:
        tell(options, f"Nothing was run. --quarantine would move {counted(dangerous, 'file')} to where no program loads them.")
    if not options.to_safetensors and convertible:
        tell(options, f"--to-safetensors would convert {counted(convertible, 'file')} to the kind that no program has to unpickle.")
