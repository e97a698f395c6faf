"""Installs embeddings from web addresses and files, on the user's request."""

from __future__ import annotations

from textual_inversion.install.addresses import Sites
from textual_inversion.install.run import Installed, Installer, InstallOptions
from textual_inversion.install.web import Web, tokens_from_environment

__all__ = ["InstallOptions", "Installed", "Installer", "Sites", "Web", "tokens_from_environment"]
