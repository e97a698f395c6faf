"""What is kept beside an embedding `X.safetensors` about its last training run, in `X.training.json`: its settings and its verdict.

The file holds settings, texts and numbers only. It may come from another person, so every value is checked when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from textual_inversion.files import FileStamp, read_regular, replace_file

ENDING = ".training.json"
_MAX_BYTES = 2**20
_LONGEST, _MOST_SETTINGS = 1000, 200  # letters of a text, and values


@dataclass(frozen=True)
class LastRun:
    """The last training run of an embedding.

    Attributes:
        settings: fields of `TrainingConfig`, as plain values.
        step: the embedding's step when this was written; a verdict belongs to this step only.
        level: `good`, `fair` or `bad`; empty where nothing was judged.
        verdict: one sentence; empty where nothing was judged.
        before: the file with the vectors that the embedding had before the run or before the last exchange; empty where there is none.
        before_level, before_verdict: the same as `level` and `verdict`, of the vectors in that file.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    level: str = ""
    verdict: str = ""
    before: str = ""
    before_level: str = ""
    before_verdict: str = ""

    def judged_at(self, step: int) -> tuple[str, str]:
        """(level, verdict) of the vectors of this step; empty where others were judged."""
        return (self.level, self.verdict) if self.step == step else ("", "")

    def write(self, path: Path) -> None:
        """Write to `path`; raises OSError."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=True)
        replace_file(path, f"{text}\n".encode("ascii"), durable=False, follow_links=False)


def last_run_file(embedding: Path) -> Path:
    """Where the last run of the embedding in the file `embedding` is kept."""
    return embedding.with_name(f"{embedding.stem}{ENDING}")


def read_last_run(embedding: Path) -> LastRun:
    """The last run of the embedding in the file `embedding`; an empty one where none is kept or the file cannot be read."""
    path = last_run_file(embedding)
    stamp = FileStamp.of(path)
    return _read(path, stamp) if stamp and stamp.size <= _MAX_BYTES else LastRun()


@lru_cache(maxsize=4096)
def _read(path: Path, stamp: FileStamp) -> LastRun:
    """The contents of the file; the stamp makes the cache forget a file that has changed."""
    try:
        values = json.loads(read_regular(path, _MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return LastRun()
    if not isinstance(values, dict):
        return LastRun()
    kinds = {"settings": dict, "step": int, **dict.fromkeys(("level", "verdict", "before", "before_level", "before_verdict"), str)}
    known = {key: values[key] for key, kind in kinds.items() if isinstance(values.get(key), kind) and _is_plain(values[key])}
    return LastRun(**known)


def _is_plain(value: Any) -> bool:
    """Whether a value holds only short texts that every system can write, numbers and the like."""
    if isinstance(value, dict):
        return len(value) <= _MOST_SETTINGS and all(_is_plain(part) for pair in value.items() for part in pair)
    if not isinstance(value, str):
        return value is None or isinstance(value, (bool, int, float))
    return len(value) <= _LONGEST and not any(letter in value for letter in "\0\x7f") and value.encode("utf-8", "ignore").decode() == value
