"""The state of the last training run on disk, so that its curve, previews and copies are shown again after a restart.

The file may be damaged or come from another version, so every value is checked when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual_inversion.files import read_regular, replace_file

NAME = "last-run.json"
_MAX_BYTES = 4 * 2**20
_PREVIEW: Mapping[str, type] = {"step": int, "file": str, "prompt": str, "seed": int, "row": int}
_COPY: Mapping[str, type] = {"step": int, "file": str}
_OVER = ("finished", "interrupted", "failed")

Points = list[list[float | None]]


@dataclass(frozen=True)
class KeptRun:
    """What a page shows of a run that is over.

    Attributes:
        state: as `Job.snapshot` gives it, without the points.
        points: of the loss curve.
        folder: the run's files lie in it.
        previews: file name -> preview.
        copies: step -> copy of the embedding.
        seconds: the time that the run took.
    """

    state: Mapping[str, Any]
    points: Points
    folder: Path
    previews: Mapping[str, Path]
    copies: Mapping[int, Path]
    seconds: float

    def write(self, path: Path) -> None:
        """Write to `path`; raises OSError."""
        names = {"previews": [path.name for path in self.previews.values()], "copies": {k: v.name for k, v in self.copies.items()}}
        kept = {"state": self.state, "points": self.points, "folder": str(self.folder), "seconds": self.seconds, **names}
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(kept).encode("ascii"), durable=False, fixed_name=True, follow_links=False)


def read_kept(path: Path, empty: Mapping[str, Any]) -> KeptRun | None:
    """The run that is kept in the file `path`; None where there is none, where it cannot be read, or where its folder lies elsewhere.

    Args:
        empty: the state without a job, whose keys and types the kept state must have.
    """
    try:
        kept = json.loads(read_regular(path, _MAX_BYTES).decode("ascii"), parse_constant=_no_number)
        state, folder = kept["state"], Path(kept["folder"])
        if path.parent.resolve() not in folder.resolve().parents or not _is_state(state, empty):
            return None
        files = [Path(name).name for name in kept["previews"]]
        copies = {int(step): folder / Path(name).name for step, name in kept["copies"].items()}
        points = [[None if value is None else float(value) for value in point] for point in kept["points"]]
        return KeptRun(state, points, folder, {file: folder / file for file in files}, copies, float(kept["seconds"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _is_state(state: Any, empty: Mapping[str, Any]) -> bool:
    """Whether a value is the state of a run that is over."""
    if not isinstance(state, dict) or state.keys() != empty.keys() or state["phase"] not in _OVER:
        return False
    if not all(empty[key] is None or isinstance(value, type(empty[key])) for key, value in state.items()):
        return False
    return _are(state["previews"], _PREVIEW) and _are(state["copies"], _COPY)


def _are(rows: Any, kinds: Mapping[str, type]) -> bool:
    """Whether each row is an object with these values in it."""
    return all(isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in kinds.items()) for row in rows)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
