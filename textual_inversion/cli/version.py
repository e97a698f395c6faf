"""The option `--version`: what a report of a fault needs."""

from __future__ import annotations

import argparse
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from textual_inversion.cli.report import say
from textual_inversion.files import read_regular

_PACKAGES = ("safetensors", "Pillow", "numpy", "transformers", "gradio")


class ShowVersion(argparse.Action):
    """Prints the versions and ends the program."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, help="show the versions of this program, Python, PyTorch and CUDA, and the device", **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the lines of `versions`."""
        for line in versions():
            say(line)
        parser.exit()


def versions() -> list[str]:
    """Lines with the versions of this program and of those below it, and the device that is used unless another one is named."""
    import torch

    from textual_inversion.diffusion.model import best_device

    device = best_device()
    card = f" ({torch.cuda.get_device_name()})" if device == "cuda" else ""
    cuda = torch.version.cuda or torch.version.hip or "none"
    packages = ", ".join(f"{name} {version}" for name in _PACKAGES if (version := _version_of(name)))
    return [
        f"textual-inversion {_own_version()}",
        f"Python {platform.python_version()} on {platform.system()} {platform.release()} ({platform.machine()})",
        f"torch {torch.__version__}, CUDA {cuda}, device {device}{card}, {torch.get_num_threads()} threads",
        packages,
    ]


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _own_version() -> str:
    """Of the project's file where this runs from a clone, else of the installed package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file() and (found := re.search(r'^version = "([^"]+)"', read_regular(project).decode("utf-8"), re.MULTILINE)):
        return found[1]
    return _version_of("textual-inversion") or "unknown"
