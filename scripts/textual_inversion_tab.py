"""Registers Textual Inversion with the WebUI that loads this file."""

from textual_inversion.hosts.entry import register
from textual_inversion.hosts.webui.prompts import TextualInversionPrompts

__all__ = ["TextualInversionPrompts"]

register()
