"""The command `preprocess`: shows the plan, or carries it out and reports."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textual_inversion.cli.common import Result, add_settings, check_pictures, command, option_help, tell, values_of
from textual_inversion.cli.report import Bar, say
from textual_inversion.settings.preprocessing import PreprocessConfig
from textual_inversion.text import counted

if TYPE_CHECKING:
    from textual_inversion.preprocess.run import Planned, PreprocessReport

_EPILOG = (
    "The steps are done in the order of the groups above. Sources are never changed, and a second run leaves what is there alone. "
    "Example: textual-inversion preprocess photos ready --focal-crop --flip --dry-run"
)


def add_preprocess(commands: Any) -> None:
    """Add the command."""
    text = "make training pictures from a folder of pictures"
    parser = command(commands, "preprocess", _preprocess, text, "SOURCE [DESTINATION]")
    parser.epilog = _EPILOG
    texts = option_help(PreprocessConfig)
    parser.add_argument("source", metavar="SOURCE", help=texts["source"])
    parser.add_argument("destination", metavar="DESTINATION", nargs="?", default="", help=texts["destination"])
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be made of each picture and what to look at; write nothing"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="threads; default: as many as processors, at most 4")
    groups = add_settings(parser, PreprocessConfig)
    captions = groups["captions"]
    groups["size"].add_argument("--no-crop", dest="resize", action="store_const", const="fit", help="the same as --resize fit")
    captions.add_argument("--download", action="store_true", help="allow the download of the BLIP model (about 1 GB); default: off")
    captions.add_argument("--device", default="cpu", help="torch device for BLIP; default: cpu")


def _preprocess(options: argparse.Namespace) -> Result:
    flips = ["horizontal"] if options.flips == [] else options.flips  # --flip alone
    config = PreprocessConfig(**{**values_of(options, PreprocessConfig), "flips": tuple(flips)})
    check_pictures(config.source)

    from textual_inversion.preprocess.captioning import load_captioners
    from textual_inversion.preprocess.run import notes, plan, preprocess

    bar = Bar()

    def move(done: int, total: int, name: str) -> None:
        bar.move(done, total, name)

    try:
        captioners = load_captioners(config, device=options.device, may_download=options.download, progress=move)
        bar.close()
        if options.dry_run:
            planned = plan(config, move, captioners=captioners, workers=options.workers)
            bar.close()
            return _show_plan(options, config, planned, notes(config))
        report = preprocess(config, move, captioners=captioners, workers=options.workers)
    finally:
        bar.close()
    return _show_report(options, config, report)


def _show_report(options: argparse.Namespace, config: PreprocessConfig, report: PreprocessReport) -> Result:
    for reason in (*(reason for _, reason in report.skipped), *report.notes):
        say(reason, error=True)
    parts = [f"{len(report.written)} written", f"{len(report.kept)} already there"]
    parts = [f"{counted(len(report.captions), 'caption')} written"] if config.captions_only else parts
    tell(options, f"{config.destination_path}: {', '.join(parts)}, {len(report.skipped)} skipped")
    skipped = [{"file": file, "reason": reason} for file, reason in report.skipped]
    return {
        "written": [str(path) for path in report.written],
        "captions": [str(path) for path in report.captions],
        "kept": len(report.kept),
        "skipped": skipped,
        "notes": report.notes,
    }


def _show_plan(options: argparse.Namespace, config: PreprocessConfig, planned: Sequence[Planned], notes: Sequence[str]) -> Result:
    for note in notes:
        say(note, error=True)
    rows = [row for item in planned for row in _rows(item)]
    widths = [max(len(row[column]) for row in [_COLUMNS, *rows]) for column in range(len(_COLUMNS) - 1)]
    for row in [_COLUMNS, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        tell(options, "  ".join([*cells, row[-1]]).rstrip())
    results = sum(view.chosen for item in planned for view in item.views) * (1 + len(config.flips))
    unusable = sum(bool(item.reason) for item in planned)
    counts = f"{counted(len(planned), 'picture')}, {counted(results, 'result')}"
    tell(options, f"{counts}, {unusable} that cannot be used; nothing was written")
    return {"planned": [_as_json(item) for item in planned], "results": results, "notes": list(notes)}


_COLUMNS = ("picture", "pixels", "cut out at", "result", "caption and remarks")


def _rows(item: Planned) -> list[tuple[str, str, str, str, str]]:
    size = "x".join(map(str, item.size)) if item.size[0] else ""
    if item.reason:
        return [(item.source.name, size, "", "", item.reason)]
    rows = []
    for view in item.views:
        left, top, right, bottom = (round(edge) for edge in view.box)
        remarks = [f"“{view.caption}”"] if view.caption else []
        remarks += [problem.text for problem in item.problems] if view.part == 0 else []
        remarks += ["(already there)"] if item.done else []
        result = "x".join(map(str, view.size))
        rows.append((item.source.name, size, f"{left},{top} {right - left}x{bottom - top}", result, " ".join(remarks)))
    return rows


def _as_json(item: Planned) -> dict[str, Any]:
    views = [{"box": [round(edge, 2) for edge in view.box], "size": view.size, "caption": view.caption} for view in item.views]
    problems = [{"kind": problem.kind, "text": problem.text} for problem in item.problems]
    return {
        "file": item.source.name,
        "size": item.size,
        "views": views,
        "problems": problems,
        "reason": item.reason,
        "done": item.done,
    }
