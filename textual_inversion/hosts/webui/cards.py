"""The WebUI's Textual Inversion page with every embedding file on it, also those that it could not load, and why.

The WebUI may load its own modules again. So they are imported, and its page is subclassed, at the call.
"""

from __future__ import annotations

import html
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from textual_inversion.errors import TextualInversionError
from textual_inversion.files import short_hash
from textual_inversion.hosts.webui.tables import spellings, unique_names, word_of
from textual_inversion.text import legible

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine
    from textual_inversion.hosts.webui.host import WebUIHost
    from textual_inversion.library import Entry

PAGE = "textual inversion"
_SPECIAL = re.compile(r"[()\[\]\\]")
#: Characters with which the WebUI's own click fails, because it searches for the text with a regular expression.
_NO_PLAIN_PATTERN = re.compile(r"[\\()\[\]{}*+?^$|.]")
_log = logging.getLogger(__name__)


def replace_page(host: WebUIHost, engine: Engine) -> bool:
    """Replace the WebUI's page by ours. Called before each page is built; a second call changes nothing.

    Returns:
        Whether the WebUI has such a page.
    """
    from modules import ui_extra_networks

    pages = ui_extra_networks.extra_pages
    place = next((index for index, page in enumerate(pages) if page.name == PAGE), None)
    if place is None:
        return False
    if not getattr(pages[place], "ours", False):
        pages[place] = page_class(type(pages[place]))(host, engine)
        ui_extra_networks.allowed_dirs.update(pages[place].allowed_directories_for_previews())
    return True


def page_class(base: Any) -> Any:
    """Our page over `base`, the class of the WebUI's own."""

    class TextualInversionCards(_Cards, base):  # type: ignore[misc]
        ours = True

        def __init__(self, host: WebUIHost, engine: Engine) -> None:
            base.__init__(self)
            self.host, self.engine = host, engine

    return TextualInversionCards


class _Cards:
    """The methods that differ from the WebUI's page; mixed in before its class."""

    host: WebUIHost
    engine: Engine
    items: dict[str, Any]

    def refresh(self) -> None:
        """Have the WebUI reload its table, and scan the folders."""
        super().refresh()  # type: ignore[misc]
        self.engine.library().rescan()

    def list_items(self) -> Iterator[dict[str, Any]]:
        """An item for each embedding of the library, usable ones first, then for embeddings that only the WebUI knows."""
        try:
            entries = self._named_entries()
        except (TextualInversionError, OSError) as error:
            _log.error("The embeddings could not be listed, so only those that the WebUI has loaded are shown: %s", error)
            entries = {}
        in_order = sorted(entries.items(), key=lambda named: not named[1].usable)
        for index, (name, entry) in enumerate(in_order):
            yield self._item_or_reason(name, entry, index)
        ours = {*entries, *(word for entry in entries.values() for word in spellings(entry))}
        foreign = (name for name in self.host.known_names() if name not in ours)
        for index, name in enumerate(foreign, len(entries)):
            if item := self._foreign_item(name, index):
                yield item

    def create_item(self, name: str, index: int | None = None, enable_filter: bool = True) -> dict[str, Any]:
        """The item of the card called `name`; its file is checked again.

        Raises:
            LookupError: the embedding does not exist any more; the WebUI then keeps its present card.
        """
        entry = self._named_entries().get(name)
        if entry is not None:
            return self._item(name, entry, index)
        if item := self._foreign_item(name, index):
            return item
        raise LookupError(f"There is no embedding {name!r} any more; refresh the cards.")

    def create_html(self, *args: Any, **keywords: Any) -> str:
        """The WebUI's page, made encodable: one character of a file name that UTF-8 cannot encode would leave every page blank."""
        return legible(super().create_html(*args, **keywords))  # type: ignore[misc]

    def create_item_html(self, tabname: str, item: dict[str, Any], template: str | None = None) -> str | dict[str, Any]:
        """The WebUI's card, with the facts above the description, and marked where the embedding does not fit."""
        from modules import shared

        if "ti_facts" not in item:
            return super().create_item_html(tabname, item, template)  # type: ignore[misc,no-any-return]
        args = super().create_item_html(tabname, {**item, **_click(tabname, item)})  # type: ignore[misc]
        if not args:  # hidden by the WebUI's settings
            return args  # type: ignore[no-any-return]
        args["copy_path_button"] = self.btn_copy_path_tpl.format(filename=html.escape(item["filename"]))  # type: ignore[attr-defined]
        if args.get("metadata_button"):  # the WebUI's own button uses a page id that its route does not know
            args["metadata_button"] = self.btn_metadata_tpl.format(extra_networks_tabname=self.name, tabname=tabname)  # type: ignore[attr-defined]
        args["description"] = description(
            item["ti_facts"],
            item["ti_reason"],
            args["description"],
            bool(shared.opts.extra_networks_card_show_desc),
            item["ti_verdict"],
        )
        if item["ti_reason"]:
            args["sort_keys"] += " data-ti-unfit"  # any place inside the card's tag would do
        return legible(template.format(**args)) if template else args

    def create_tree_file_item_html(self, tabname: str, file_path: str, item: dict[str, Any]) -> str:
        """The WebUI's line of the tree, with the file's name escaped."""
        escaped = {**item, "name": html.escape(item["name"])}
        return super().create_tree_file_item_html(tabname, html.escape(file_path), escaped)  # type: ignore[misc,no-any-return]

    def read_user_metadata(self, item: dict[str, Any], use_cache: bool = True) -> None:
        """The notes that the WebUI's edit form keeps in a `.json` beside the file; a `.json` of another program counts as empty."""
        try:
            super().read_user_metadata(item, use_cache)  # type: ignore[misc]
        except (AttributeError, TypeError):
            item["user_metadata"] = {}

    def _named_entries(self) -> dict[str, Entry]:
        """Card name -> entry; if several files have the same name, the card's name includes the file's path."""
        library, known = self.engine.library(), self.host.known_names()
        return unique_names(library.rescan(), lambda entry: legible(word_of(entry, known)), library.folders)

    def _item_or_reason(self, name: str, entry: Entry, index: int) -> dict[str, Any]:
        try:
            return self._item(name, entry, index)
        except Exception as error:  # noqa: BLE001  an error in one card would leave every page of the WebUI blank
            _log.warning("The card of %s shows only that it failed: %s", entry.path, error)
            return self._bare_item(name, entry, index, f"Its card could not be made ({error}).")

    def _item(self, name: str, entry: Entry, index: int | None) -> dict[str, Any]:
        path = str(entry.path.with_suffix(""))
        item = self._bare_item(name, entry, index, entry.reason)
        sha256 = self.engine.library().sha256(entry) if entry.info else ""
        item["shorthash"] = short_hash(sha256)
        path_below = str(self.search_terms_from_path(str(entry.path)))  # type: ignore[attr-defined]
        item["search_terms"] = [html.escape(term) for term in (path_below, sha256, *search_terms(entry)) if term]
        item["preview"] = self.find_preview(path)  # type: ignore[attr-defined]
        item["description"] = self.find_description(path) or entry.notes or None  # type: ignore[attr-defined]
        item["metadata"] = metadata(entry)
        item["sort_keys"] = {"default": index, **self.get_sort_keys(str(entry.path))}  # type: ignore[attr-defined]
        self.read_user_metadata(item, use_cache=index is not None)
        self._add_click(item, entry)
        return item

    def _bare_item(self, name: str, entry: Entry, index: int | None, reason: str) -> dict[str, Any]:
        """The least that the WebUI needs of an item, without reading any file."""
        from modules import shared
        from modules.ui_extra_networks import quote_js

        filename = str(entry.path)
        return {
            "name": name,
            "filename": filename,
            "shorthash": "",
            "preview": None,
            "description": None,
            "search_terms": [html.escape(filename)],
            "prompt": quote_js(name),
            "local_preview": f"{entry.path.with_suffix('')}.preview.{shared.opts.samples_format}",
            "sort_keys": {"default": index, "date_created": 0, "date_modified": 0, "name": name.lower(), "path": filename.lower()},
            "ti_facts": facts(entry),
            "ti_reason": reason,
            "ti_verdict": (entry.last_run.level, entry.last_run.verdict),
            "ti_insert": None,
        }

    def _add_click(self, item: dict[str, Any], entry: Entry) -> None:
        """Add the texts that a click puts into the prompt and, for a pair, into the negative prompt."""
        from modules.ui_extra_networks import quote_js

        known = self.host.known_names()
        weight = None
        if self.host.option("card_as_tag"):
            weight = preferred_weight(item.get("user_metadata") or {})
        text = inserted(word_of(entry, known), weight)
        negative = self.engine.library().find(entry.negative) if entry.negative else None
        negative_text = inserted(word_of(negative, known), weight) if negative is not None and negative.usable else ""
        item["prompt"] = quote_js(text)
        if negative_text:
            item["negative_prompt"] = quote_js(negative_text)
        if is_no_plain_pattern(text + negative_text):
            item["ti_insert"] = (text, negative_text)

    def _foreign_item(self, name: str, index: int | None) -> dict[str, Any] | None:
        """The WebUI's own item of an embedding that no file of ours holds, such as one from a LoRA; None when the WebUI's code fails."""
        try:
            return super().create_item(name, index)  # type: ignore[misc,no-any-return]
        except Exception as error:  # noqa: BLE001  the WebUI's code over another extension's object; without this item the page still works
            _log.warning("The WebUI's own card of %r could not be made: %s", name, error)
            return None


def _click(tabname: str, item: dict[str, Any]) -> dict[str, str]:
    """Our click handler; empty where the WebUI's own click works."""
    if item["ti_reason"]:
        return {"onclick": html.escape(explain(item["name"], item["ti_reason"]))}
    if item["ti_insert"]:
        return {"onclick": html.escape(insert(tabname, *item["ti_insert"]))}
    return {}


def facts(entry: Entry) -> str:
    """Vectors, family, steps and checkpoint in one line; empty when the file cannot be read."""
    partner = "negative" if entry.is_negative else f"with {entry.negative}" if entry.negative else ""
    return entry.description.line(entry.description.checkpoint or "", partner)


def search_terms(entry: Entry) -> list[str]:
    """Words that the page's search finds the card by, besides its path, hash and description."""
    return [entry.name, *facts(entry).split(" · "), "does not fit" if entry.reason else ""]


def metadata(entry: Entry) -> dict[str, Any]:
    """The metadata that the card's ⓘ button shows: everything that the file contains about itself."""
    facts = entry.info.description.labelled() if entry.info else {}
    if entry.reason:
        facts["problem"] = entry.reason
    return {key: legible(value) if isinstance(value, str) else value for key, value in facts.items()}


def description(line: str, reason: str, theirs: str, shown: bool, verdict: tuple[str, str] = ("", "")) -> str:
    """HTML for the place of a card's description: the facts, why it does not fit, the verdict, and then `theirs`, which is HTML already.

    Args:
        shown: whether the WebUI shows descriptions; without them only the reason remains.
        verdict: the level and the sentence of the last training run; empty where there is none.
    """
    parts = [f'<span class="ti-card-facts">{html.escape(line)}</span>' if line and shown else ""]
    level, sentence = map(html.escape, verdict)
    parts += [f'<span class="ti-verdict" data-level="{level}">{sentence}</span>' if sentence and shown else ""]
    parts += [f'<span class="ti-card-reason">{html.escape(reason)}</span>' if reason else "", theirs]
    return "".join(parts)


def inserted(word: str, weight: float | None) -> str:
    """The text that a click inserts into a prompt: the word with escaped brackets or, with a weight, `<word:1>`."""
    return _SPECIAL.sub(r"\\\g<0>", word) if weight is None else f"<{word}:{weight:g}>"


def preferred_weight(user_metadata: Mapping[str, Any]) -> float:
    """The weight that the user noted beside the file, under the key that the WebUI uses for other networks; else 1."""
    try:
        weight = float(user_metadata.get("preferred weight") or 1)
    except (TypeError, ValueError):
        return 1.0
    return weight if math.isfinite(weight) and abs(weight) < 100 else 1.0


def is_no_plain_pattern(text: str) -> bool:
    """Whether the WebUI's own click would misread the text."""
    return bool(_NO_PLAIN_PATTERN.search(text))


def insert(tabname: str, text: str, negative_text: str) -> str:
    """JavaScript that puts the texts into the prompts, or takes them out again; the texts may hold any characters."""
    return f"textualInversion.insert({_quoted(tabname)}, {_quoted(text)}, {_quoted(negative_text)})"


def explain(name: str, reason: str) -> str:
    """JavaScript that shows in the WebUI's own popup why a click puts nothing into the prompt."""
    text = f"{name} cannot be used in prompts now: {reason}"
    return f"popup(Object.assign(document.createElement('p'), {{className: 'ti-card-why', textContent: {_quoted(text)}}}))"


def _quoted(text: str) -> str:
    return json.dumps(text)
