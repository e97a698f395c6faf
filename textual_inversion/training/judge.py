"""Judges the vectors of a run: measures their norms, their nearest words and their way from the start, and gives the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.training.events import Judged
from textual_inversion.training.step import TrainedVectors
from textual_inversion.training.verdict import Measured, judge_run
from textual_inversion.vocabulary import lengths_of, nearest_words


class Judge:
    """Judges the vectors of a run by what is measured.

    Args:
        known: what stays the same during the run.

    Attributes:
        kept: the step whose vectors are kept in place of the last ones; None = the last ones are.
    """

    def __init__(self, known: Measured, trained: TrainedVectors, model: StableDiffusion) -> None:
        self.known, self.trained = known, trained
        self.kept: int | None = None
        self.conditioner = model.conditioner
        self.tables = {encoder: module.token_table for encoder, module in model.conditioner.encoders.items()}
        self.lengths = {encoder: lengths for encoder, table in self.tables.items() if (lengths := lengths_of(table))}
        self.start = {encoder: rows.clone() for encoder, rows in self._vectors().items()}

    def _vectors(self) -> dict[str, torch.Tensor]:
        """Text encoder -> its vectors [n, d]."""
        return self.conditioner.split(self.trained.vectors)

    def verdict(self, step: int, last_step: int, points: Sequence[tuple[int, float]], *, over: bool) -> Judged:
        """The verdict at `step`; `points` are the evaluations until then."""
        vectors = self._vectors()
        norms = {encoder: tuple(_finite(rows)) for encoder, rows in vectors.items()}
        measured = replace(
            self.known,
            step=step,
            last_step=last_step,
            points=[point for point in points if self.kept is None or point[0] <= self.kept],
            norms=norms,
            lengths=self.lengths,
            moved=max(_moved(self.start[encoder], rows) for encoder, rows in vectors.items()),
            over=over,
            undone=self.kept is not None and self.kept == points[0][0] and len(points) > 1,
        )
        verdict = judge_run(measured)
        nearest = {encoder: nearest_words(rows.float(), self.tables[encoder], 1) for encoder, rows in vectors.items()}
        words = {encoder: tuple(near[0][0] if near else "" for near in rows) for encoder, rows in nearest.items()}
        band = {encoder: (lengths.low, lengths.median, lengths.high) for encoder, lengths in self.lengths.items()}
        return Judged(step, str(verdict.level), verdict.text, words, norms, band)


def _finite(rows: torch.Tensor) -> list[float | None]:
    return [norm if math.isfinite(norm) else None for norm in torch.linalg.vector_norm(rows, dim=1).tolist()]


def _moved(start: torch.Tensor, rows: torch.Tensor) -> float:
    """The distance of `rows` [n, d] from `start`, as a share of the length of `start`."""
    return float(torch.linalg.vector_norm(rows - start) / torch.linalg.vector_norm(start).clamp(min=1e-12))
