"""Puts other vectors into an embedding's file, such as those of an earlier step, in a way that can be undone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from textual_inversion.errors import EmbeddingError
from textual_inversion.files import os_error_text, read_regular
from textual_inversion.last_run import last_run_file, read_last_run

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine

_STAMP = "%Y-%m-%d_%H-%M-%S"


def exchange(engine: Engine, name: str, source: Path, judged: tuple[str, str] = ("", "")) -> int:
    """Make the vectors in the file `source` those of the embedding `name`. The present ones are kept, so that `take_back` undoes it.

    Args:
        judged: level and verdict of those vectors; empty where they were not judged.

    Returns:
        The step of the vectors.

    Raises:
        EmbeddingError: there is no such embedding or no such file, or one of them cannot be read or written.
    """
    target = engine.embedding_file(name)
    if not source.is_file():
        raise EmbeddingError(f"The copy {source} is not there any more; choose another step.", path=source)
    if (step := engine.step_if_equal(source, target, name)) is not None:
        return step  # asked twice: keeping the present vectors again would lose those of before
    run = read_last_run(target)
    kept = _free(engine.host.folders().outputs / "training" / target.stem / f"before {time.strftime(_STAMP)}{target.suffix}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(read_regular(target))
        step = engine.put_vectors(source, target, name)
        (level, verdict), (before_level, before_verdict) = judged, (run.level, run.verdict)
        now = replace(run, step=step, level=level, verdict=verdict, before=str(kept))
        replace(now, before_level=before_level, before_verdict=before_verdict).write(last_run_file(target))
    except OSError as error:
        raise EmbeddingError(f"The vectors of {name!r} stay as they are: {os_error_text(error)}.", path=target) from error
    engine.refresh()
    return step


def kept_before(engine: Engine, name: str) -> Path | None:
    """The file with the vectors that `name` had before its last run or its last exchange; None where there is none."""
    try:
        before, outputs = read_last_run(engine.embedding_file(name)).before, engine.host.folders().outputs.resolve()
        path = Path(before).resolve() if before else None
        # the file beside the embedding may come from another person, and name any place
        return path if path and path.is_relative_to(outputs) and path.is_file() else None
    except (EmbeddingError, OSError, ValueError, RuntimeError):
        return None


def take_back(engine: Engine, name: str) -> int:
    """Give the embedding `name` the vectors that it had before its last run or its last exchange; a second call undoes the first.

    Returns:
        The step of the vectors.

    Raises:
        EmbeddingError: nothing is kept, or as `exchange`.
    """
    before = kept_before(engine, name)
    if before is None:
        raise EmbeddingError(f"No earlier vectors of {name!r} are kept.")
    run = read_last_run(engine.embedding_file(name))
    return exchange(engine, name, before, (run.before_level, run.before_verdict))


def _free(path: Path) -> Path:
    """`path`, or with a number where that is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem} {number}{path.suffix}")
    return free
