"""The tables of a run that goes on after a kill: each step once, and no row of an earlier run lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from textual_inversion.training.recorder import _drop_rows_from

HEAD = b"step,loss\r\n"


def rows(*steps: int) -> bytes:
    return b"".join(b"%d,0.5\r\n" % step for step in steps)


@pytest.mark.parametrize(
    ("before", "step", "after"),
    [
        (rows(1, 2, 3, 4), 3, rows(1, 2)),
        (rows(1, 2, 3), 4, rows(1, 2, 3)),
        (rows(1, 2, 3, 4, 1, 2), 3, rows(1, 2, 3, 4, 1, 2)),  # another run's rows come before
        (rows(1, 2, 3, 4, 1, 2, 3), 3, rows(1, 2, 3, 4, 1, 2)),
        (rows(1, 2) + b"3", 3, rows(1, 2)),  # a row that is cut off
        (rows(1, 2) + b"1", 30, rows(1, 2)),
        (rows(10, 20), 5, b""),
        (b"", 3, b""),
    ],
)
def test_rows_of_steps_that_are_done_again_are_replaced(tmp_path: Path, before: bytes, step: int, after: bytes) -> None:
    path = tmp_path / "loss.csv"
    path.write_bytes(HEAD + before)
    _drop_rows_from(path, step)
    assert path.read_bytes() == HEAD + after


def test_without_a_table_nothing_is_made(tmp_path: Path) -> None:
    _drop_rows_from(tmp_path / "loss.csv", 3)
    assert list(tmp_path.iterdir()) == []
