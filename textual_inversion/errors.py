"""Every error that this package raises on purpose; each message is one sentence that a user can act on.

TextualInversionError
├── EmbeddingError            an embedding file or its contents
│   ├── UnsafeFileError       the file tries to do more than hold data
│   ├── UnknownLayoutError    no reader recognises the layout
│   │   └── NoEmbeddingError  an ordinary picture
│   └── NameTakenError        a file of that name exists
├── InvalidNameError          a name that cannot become a file name or a prompt word
├── InstallError              an address or a file that cannot be installed
├── PromptError               a prompt or a template that cannot be used
├── CheckpointError           a checkpoint that is not one, or misses tensors
│   └── UnsupportedCheckpointError   a checkpoint of a family that is not handled
├── DatasetError              a folder or a picture that training cannot use
├── ConfigError               a setting outside its range
└── TrainingError             training cannot go on
    ├── NonFiniteLossError    the loss became NaN or infinite
    └── ZeroGradientError     no gradient reaches the vectors
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

_Error = TypeVar("_Error", bound="TextualInversionError")


class TextualInversionError(Exception):
    """Base class: catch it to catch everything this package raises on purpose.

    Attributes:
        reason: the sentence for the user, without the file in front of it.
        path: the file or folder at fault; None where there is none.
        field: the part of that file at fault, such as a key or a tensor's name; empty where there is none.
        setting: the setting at fault, by the name of its dataclass field, such as `batch_size`; empty where there is none.
    """

    def __init__(self, reason: str = "", *, path: str | os.PathLike[str] | None = None, field: str = "", setting: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = None if path is None else Path(path)
        self.field = field
        self.setting = setting
        self._prefix = ""

    def at(self: _Error, path: str | os.PathLike[str]) -> _Error:
        """The same error with its file; from now on `str` begins with the path. For readers, which are given bytes and no name."""
        self.path, self._prefix = Path(path), f"{os.fspath(path)}: "
        return self

    def __str__(self) -> str:
        return self._prefix + self.reason


class EmbeddingError(TextualInversionError):
    """An embedding file or its contents cannot be used."""


class UnsafeFileError(EmbeddingError):
    """A file that tries to do more than hold data, such as a pickle that imports."""


class UnknownLayoutError(EmbeddingError):
    """A readable file in which no reader recognises an embedding."""


class NoEmbeddingError(UnknownLayoutError):
    """A picture that carries no embedding, as previews do; a folder of embeddings may hold many."""


class NameTakenError(EmbeddingError):
    """A file of that name exists and overwriting was not asked for."""


class InvalidNameError(TextualInversionError):
    """A name that cannot become a file name or a word of a prompt."""


class InstallError(TextualInversionError):
    """An address or a file from which no embedding can be installed."""


class PromptError(TextualInversionError):
    """A prompt or a prompt template that cannot be used."""


class CheckpointError(TextualInversionError):
    """A checkpoint file that is not one, or that misses tensors."""


class UnsupportedCheckpointError(CheckpointError):
    """A checkpoint of a family that this version does not handle."""


class DatasetError(TextualInversionError):
    """A folder or a picture that training cannot use."""


class ConfigError(TextualInversionError):
    """A setting outside its range."""


class TrainingError(TextualInversionError):
    """Training cannot go on; the last good vectors are kept."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""


class ZeroGradientError(TrainingError):
    """No gradient reaches the vectors, so they would never learn."""
