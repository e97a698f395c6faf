"""Markdown tables and their files."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from pathlib import Path

import torch


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, padded so that it reads well as text."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)


def where(device: str) -> str:
    """Device, versions and date, for the line above a table."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{name}, torch {torch.__version__}, {system}, {datetime.datetime.now(datetime.timezone.utc).date()}"


def publish(text: str, out: str) -> None:
    """Print `text`, and write it to the file `out` unless that is empty."""
    print(text)
    if out:
        Path(out).write_text(text + "\n", encoding="utf-8")
