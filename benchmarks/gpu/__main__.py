"""Runs the parts one after the other and prints a table for each: `python -m benchmarks.gpu`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.gpu import checks, diffusers_loop, graphs, kernels, sampler, sdxl, steps, together, whole_run
from benchmarks.gpu.plan import MissingError, Plan, Row, first_line, tell, tidy
from benchmarks.table import table, where

PARTS: dict[str, tuple[str, Callable[[Plan], Iterable[Row]]]] = {  # name -> title, rows; what matters most comes first
    "checks": ("The step beside the CPU's", checks.rows),
    "graphs": ("Steps from a graph beside eager steps", graphs.rows),
    "steps": ("A training step", steps.rows),
    "sdxl": ("SDXL's UNet", sdxl.rows),
    "together": ("Several embeddings", together.rows),
    "sampler": ("A picture", sampler.rows),
    "run": ("From command to file", whole_run.rows),
    "kernels": ("The kernels of one eager step", kernels.rows),
    "diffusers": ("diffusers' example", diffusers_loop.rows),
}
FIRST, LAST = ("what", "model", "precision", "batch"), ("ok", "note")
LIMIT = 240  # seconds; a part that would begin later is left out, so that all is done in five minutes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Check and time everything on a CUDA device.")
    parser.add_argument("--device", default="cuda", help="torch device (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes only: shows that the benchmark itself works")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to do (default: all)")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"begin no part after so many seconds (default: {LIMIT})")
    parser.add_argument("--out", default="", metavar="FILE", help="write the tables there too")
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        print("No CUDA device is at hand: run this where one is, or try the code with --device cpu --quick.", file=sys.stderr)
        return 2
    plan = Plan.quick(options.device) if options.quick else Plan(options.device)
    print(where(options.device), flush=True)
    written, good = [where(options.device)], True
    for text, passed in run(plan, options.parts, options.limit):
        print(f"\n{text}", flush=True)  # at once, so that a run that is ended keeps what it has
        written.append(text)
        good = good and passed
        if options.out:
            Path(options.out).write_text("\n\n".join(written) + "\n", encoding="utf-8")
    return 0 if good else 1


def run(plan: Plan, names: Sequence[str], limit: float = LIMIT) -> Iterator[tuple[str, bool]]:
    """Each part's table under its title, and whether every check in it passed."""
    begun = time.monotonic()
    for name in names:
        title, part = PARTS[name]
        since = time.monotonic()
        rows = list(guarded(plan, name, part)) if since - begun < limit else [left_out(name, limit)]
        seconds = time.monotonic() - since
        tell(f"{name}: {seconds:.0f} s")
        yield f"### {title} ({seconds:.0f} s)\n\n{shown(rows)}", all(row.get("ok") != "no" for row in rows)


def guarded(plan: Plan, name: str, part: Callable[[Plan], Iterable[Row]]) -> Iterator[Row]:
    """The rows of a part; where it fails, a row with the reason, so that the others still run."""
    try:
        yield from part(plan)
    except MissingError as missing:
        yield {"what": name, "note": f"not run: {missing}"}
    except Exception as error:  # noqa: BLE001 - whatever breaks one part must not cost the others
        yield {"what": f"{name} failed", "ok": "no", "note": first_line(error)}
    finally:
        tidy(plan)


def left_out(name: str, limit: float) -> Row:
    """The row of a part for which there is no time."""
    return {"what": name, "note": f"left out, because {limit:.0f} s had passed"}


def shown(rows: Sequence[Row]) -> str:
    """A table of the columns that any row fills."""
    columns = [column for row in rows for column in row if column not in FIRST + LAST]
    ordered = [column for column in dict.fromkeys((*FIRST, *columns, *LAST)) if any(row.get(column) for row in rows)]
    return table(ordered, [[row.get(column, "") for column in ordered] for row in rows])


if __name__ == "__main__":
    sys.exit(main())
