"""Turns a folder of pictures into a folder of training pictures, with their captions. Knows nothing of pages and no model of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from textual_inversion.errors import ConfigError
from textual_inversion.pictures.faces import one_thread, why_no_faces
from textual_inversion.pictures.parallel import default_workers, in_order
from textual_inversion.pictures.reading import require_images
from textual_inversion.preprocess.captioning import Captioner, Describer
from textual_inversion.preprocess.destination import Destination, write_error
from textual_inversion.preprocess.plan import Looker, Planned, plan
from textual_inversion.preprocess.writer import PreprocessReport, Writer
from textual_inversion.settings.preprocessing import PreprocessConfig

__all__ = ["Planned", "PreprocessConfig", "PreprocessReport", "notes", "plan", "preprocess"]


def preprocess(
    config: PreprocessConfig,
    progress: Callable[[int, int, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    *,
    planned: Sequence[Planned] | None = None,
    captioners: Mapping[str, Captioner] | None = None,
    workers: int = 0,
) -> PreprocessReport:
    """Write what the settings make of every picture of the source folder, as PNG, into the destination, with captions.

    Results are named `<number, 5 digits>-<part and mirroring>-<source name>.png`. Files appear whole or not at all; a second run
    leaves what is there alone and does the rest. A picture that cannot be read is named in the report and skipped.

    Args:
        config: folders and settings.
        progress: told (pictures done, pictures in all, file name) after each source picture.
        should_stop: asked before each source picture; those begun are finished.
        planned: from `plan` with the same settings, perhaps with pictures left out and captions edited; None = look while writing.
        captioners: name -> what describes a picture, for those in `config.captioners`; not asked for what is planned.
        workers: threads; 0 = as many as there are processors, at most four.

    Raises:
        ConfigError: a captioner that is not there, or a plan of other settings.
        DatasetError: no such source, no pictures in it, or the destination cannot be written (no permission, disk full).
    """
    todo, writer = _prepare(config, planned, captioners or {})
    report = PreprocessReport(notes=notes(config))
    done = 0
    with one_thread(), closing(in_order(writer.process, todo, workers or default_workers(), should_stop)) as outcomes:
        try:
            for outcome in outcomes:
                report.take(outcome)
                done += 1
                if progress:
                    progress(done, len(todo), todo[done - 1].source.name)
        except OSError as error:
            raise write_error(config.destination_path, error, len(report.written)) from error
    return replace(report, stopped=done < len(todo))


def notes(config: PreprocessConfig) -> list[str]:
    """Sentences on what these settings cannot do on this machine."""
    faces = why_no_faces() if config.focal_crop and config.face_weight and not config.captions_only else ""
    return [faces] if faces else []


def _prepare(
    config: PreprocessConfig, planned: Sequence[Planned] | None, captioners: Mapping[str, Captioner]
) -> tuple[list[Planned], Writer]:
    if planned is None:
        describer, destination = Describer(config, captioners), Destination(config)
        sources = require_images(config.source_path)
        todo = [Planned(source, number) for source, number in zip(sources, destination.number(sources))]
    elif any(item.settings != config.fingerprint for item in planned):
        raise ConfigError("These pictures were looked at with other settings; look at them again before writing.")
    else:
        describer, destination, todo = Describer(config, None), Destination(config), list(planned)
    destination.prepare()
    return todo, Writer(config, Looker(config, describer, destination))
