"""What all tests share: no network, the versions that were tested, and the Chromium that browser tests drive."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil

import pytest
from hypothesis import settings

# Set before anything imports the libraries that read them.
for name, value in {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(name, value)
if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side would get in each other's way with several threads each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no failure; pytest-timeout catches what hangs.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

SHOWN = ("torch", "gradio", "transformers", "safetensors", "numpy", "pillow", "diffusers", "hypothesis", "playwright")
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def pytest_report_header() -> list[str]:
    """Versions first, so that a report can be read without asking for them."""
    versions = ", ".join(f"{package} {_version(package)}" for package in SHOWN)
    return [f"machine: {platform.platform()}, {os.cpu_count()} processors", f"versions: {versions}"]


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium or Chrome: the variable CHROMIUM, else the first on PATH; the test is skipped where there is none."""
    wanted = [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else CHROMIUMS
    found = next((path for name in wanted if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium: none of {', '.join(wanted)} is on PATH")
    return found
