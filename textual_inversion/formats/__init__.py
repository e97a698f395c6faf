"""Embedding files: load, save and describe them. Knows layouts and containers, nothing of folders, models or pages."""

from __future__ import annotations

from textual_inversion.formats.registry import (
    PICTURE_ENDINGS,
    READ_ENDINGS,
    FileInfo,
    describe,
    describe_all,
    load,
    load_all,
    save,
    writable_layouts,
)

__all__ = ["PICTURE_ENDINGS", "READ_ENDINGS", "FileInfo", "describe", "describe_all", "load", "load_all", "save", "writable_layouts"]
