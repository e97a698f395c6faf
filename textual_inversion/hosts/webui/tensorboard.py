"""A run's events in tensorboard, as the WebUI's Training options ask for it. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textual_inversion.app.job import JobEvent, Listener
from textual_inversion.hosts.webui.options import host_option
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.events import Message, PreviewDrawn, StepDone


@contextmanager
def tensorboard(config: TrainingConfig, listener: Listener) -> Iterator[Listener]:
    """A listener that also writes into `<log directory>/tensorboard`, where that is wanted and can be done."""
    writer = _writer(config, listener) if host_option("training_enable_tensorboard", False) and config.log_dir else None
    if writer is None:
        yield listener
        return

    def listen(event: JobEvent) -> None:
        listener(event)
        _write(writer, event)

    try:
        yield listen
    finally:
        writer.close()


def _writer(config: TrainingConfig, listener: Listener) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        listener(Message("Nothing is written for tensorboard, because it is not installed; Settings, Training turns this off."))
        return None
    seconds = int(host_option("training_tensorboard_flush_every", 120) or 120)
    try:
        return SummaryWriter(log_dir=str(Path(config.log_dir) / "tensorboard"), flush_secs=seconds)
    except OSError as error:
        listener(Message(f"Nothing is written for tensorboard: {error}."))
        return None


def _write(writer: Any, event: JobEvent) -> None:
    if isinstance(event, StepDone):
        writer.add_scalar("Loss/train", event.loss, event.step)
        writer.add_scalar("Learn rate/train", event.learning_rate, event.step)
        writer.add_scalar("Vector norm", event.vector_norm, event.step)
    elif isinstance(event, PreviewDrawn) and host_option("training_tensorboard_save_images", False):
        import numpy as np
        from PIL import Image

        with Image.open(event.path) as picture:
            writer.add_image("Preview", np.asarray(picture.convert("RGB")), event.step, dataformats="HWC")
