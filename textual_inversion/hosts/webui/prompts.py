"""Rewrites `<name>` and `<name:1.2>` into syntax that the WebUI understands, before it looks for extra networks.

`process` runs after the styles are added and the embeddings are reloaded, and before the infotext is made. `before_process_batch` runs just
before the WebUI takes `<word:…>` out of the positive prompts, and so also rewrites text that another extension has added since.
"""

from __future__ import annotations

from typing import Any

from modules import scripts, shared

from textual_inversion.hosts.webui import current_engine, current_host
from textual_inversion.hosts.webui.generation import has_own_hires_checkpoint, rewrite_all
from textual_inversion.hosts.webui.tables import word_of
from textual_inversion.prompts.names import rewrite_names


class TextualInversionPrompts(scripts.Script):
    """Runs at every generation of txt2img and img2img, from the page and from the API; has no controls."""

    create_group = False  # without controls, a group would be an empty box

    def title(self) -> str:
        """The WebUI's name for the script."""
        return "Textual Inversion names"

    def show(self, is_img2img: bool) -> object:
        """Run on both pages, without being selected."""
        return scripts.AlwaysVisible

    def before_process(self, p: Any, *args: Any) -> None:
        """Called before the WebUI loads the model of the generation."""
        current_host().before_loading()

    def process(self, p: Any, *args: Any) -> None:
        """Rewrite all prompts of the generation."""
        current_host().before_prompts()
        _rewrite(p)

    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Rewrite text that was added since `process`; `kwargs` has the `batch_number`."""
        first = int(kwargs.get("batch_number", 0)) * p.batch_size
        _rewrite(p, slice(first, first + p.batch_size))

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Called after the prompts are encoded, before the infotext is made."""
        current_host().before_sampling(p)


def run_last() -> None:
    """Move the script behind those of all other extensions; called before each page, as the WebUI makes its scripts then.

    Otherwise every extension that puts names into prompts would have to be listed in metadata.ini.
    """
    scripts.scripts_data.sort(key=lambda data: data.script_class is TextualInversionPrompts)


def before_token_counter(params: Any) -> None:
    """Have the WebUI's counter count the prompt as it will be drawn; `params` is the WebUI's `BeforeTokenCounterParams`.

    The WebUI adds the styles afterwards. Where one of them holds a name, they are added and rewritten here.
    """
    host = current_host()
    if not host.option("rewrite_prompts"):
        return
    known = host.known_names()
    params.prompt = rewrite_names(params.prompt, known)
    if not params.styles or not shared.opts.include_styles_into_token_counters:
        return
    styles = shared.prompt_styles
    add = styles.apply_styles_to_prompt if params.is_positive else styles.apply_negative_styles_to_prompt
    styled = add(params.prompt, params.styles)
    rewritten = rewrite_names(styled, known)
    if rewritten != styled:
        params.prompt, params.styles = rewritten, []


def _rewrite(p: Any, part: slice = slice(None)) -> None:
    host = current_host()
    if not host.option("rewrite_prompts"):
        return
    known, known_in_hires = host.known_names(), None
    if has_own_hires_checkpoint(p):  # prompts are parsed before the hires checkpoint is loaded, so it may know the name of any file
        readable = [entry for entry in current_engine().library().entries() if entry.info is not None]
        known_in_hires = {*known, *(word_of(entry, known) for entry in readable)}
    rewrite_all(p, known, known_in_hires, part)
