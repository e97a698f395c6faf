"""Thin stand-ins for the modules of a WebUI that this package's parts ask for, shaped like those of A1111 1.10.1.

Put where the WebUI's own would be by the fixture in tests/webui/conftest.py, and gone after each test.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

CARD = (
    '<div class="card" style="{style}" onclick="{card_clicked}" data-name="{name}" {sort_keys}>{background_image}'
    '{copy_path_button}{metadata_button}{edit_button}{search_terms}<span class="name">{name}</span>'
    '<span class="description">{description}</span></div>'
)


class Script:
    """`modules.scripts.Script`."""

    create_group = True

    def title(self) -> str:
        raise NotImplementedError

    def show(self, is_img2img: bool) -> Any:
        return True

    def process(self, p: Any, *args: Any) -> None:
        pass

    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        pass


class Styles:
    """`modules.styles.StyleDatabase`, its styles given as name -> (prompt, negative prompt)."""

    def __init__(self) -> None:
        self.styles: dict[str, tuple[str, str]] = {}

    def apply_styles_to_prompt(self, prompt: str, names: list[str]) -> str:
        return ", ".join([prompt, *(self.styles[name][0] for name in names)])

    def apply_negative_styles_to_prompt(self, prompt: str, names: list[str]) -> str:
        return ", ".join([prompt, *(self.styles[name][1] for name in names)])


class Lister:
    """`modules.util.MassFileLister`, which raises for a folder that is not there."""

    def mctime(self, path: str) -> tuple[float, float]:
        known = {str(beside): beside for beside in sorted(Path(path).parent.iterdir())}
        if path not in known:
            return 0, 0
        status = known[path].stat()
        return status.st_mtime, status.st_ctime

    def exists(self, path: str) -> bool:
        return Path(path).exists()


def quote_js(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class ExtraNetworksPage:
    """`modules.ui_extra_networks.ExtraNetworksPage`, as far as cards are concerned."""

    shared: Any

    def __init__(self, title: str) -> None:
        self.title, self.name = title, title.lower()
        self.extra_networks_tabname = self.name.replace(" ", "_")
        self.allow_negative_prompt = False
        self.items: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}
        self.lister = Lister()
        self.btn_copy_path_tpl = '<i data-clipboard-text="{filename}"></i>'
        self.btn_metadata_tpl = "<i onclick=\"extraNetworksRequestMetadata(event, '{extra_networks_tabname}')\"></i>"

    def refresh(self) -> None:
        pass

    def read_user_metadata(self, item: dict[str, Any], use_cache: bool = True) -> None:
        metadata = _json_beside(item["filename"])
        if (told := metadata.get("description", None)) is not None:
            item["description"] = told
        item["user_metadata"] = metadata

    def search_terms_from_path(self, filename: str) -> str:
        for folder in self.allowed_directories_for_previews():
            if filename.startswith(folder):
                return str(Path(filename).relative_to(Path(folder).parent))
        return ""

    def find_preview(self, path: str) -> str | None:
        return f"./thumb?{path}.png" if self.lister.exists(f"{path}.png") else None

    def find_description(self, path: str) -> str | None:
        beside = Path(f"{path}.txt")
        return beside.read_text(encoding="utf-8") if beside.exists() else None

    def get_sort_keys(self, path: str) -> dict[str, Any]:
        modified, created = self.lister.mctime(path)
        return {"date_created": int(created), "date_modified": int(modified), "name": Path(path).name.lower(), "path": path.lower()}

    def allowed_directories_for_previews(self) -> list[str]:
        return []

    def create_item_html(self, tabname: str, item: dict[str, Any], template: str | None = None) -> Any:
        onclick = item.get("onclick")
        if onclick is None:
            negative = item.get("negative_prompt", "''")
            allowed = str(self.allow_negative_prompt).lower()
            onclick = html.escape(f"cardClicked('{tabname}', {item['prompt']}, {negative}, {allowed});")
        terms = "".join(f"<span class='hidden search_terms'>{term}</span>" for term in item.get("search_terms", []))
        told = (item.get("description") or "") if self.shared.opts.extra_networks_card_show_desc else ""
        args = {
            "background_image": html.escape(item.get("preview") or ""),
            "card_clicked": onclick,
            "copy_path_button": self.btn_copy_path_tpl.format(filename=item["filename"]),
            "description": html.escape(told),
            "edit_button": "",
            "metadata_button": self.btn_metadata_tpl.format(extra_networks_tabname=self.extra_networks_tabname)
            if item.get("metadata")
            else "",
            "name": html.escape(item["name"]),
            "search_terms": terms,
            "sort_keys": " ".join(f'data-sort-{key}="{html.escape(str(value))}"' for key, value in item.get("sort_keys", {}).items()),
            "style": "",
        }
        return template.format(**args) if template else args

    def create_tree_file_item_html(self, tabname: str, file_path: str, item: dict[str, Any]) -> str:
        args = self.create_item_html(tabname, item)
        return f'<li data-path="{file_path}" data-hash="{item["shorthash"]}" onclick="{args["card_clicked"]}">{item["name"]}</li>'

    def create_html(self, tabname: str) -> str:
        """All cards and the tree, as a WebUI makes them: what raises here leaves every page blank."""
        self.items = {item["name"]: item for item in self.list_items()}
        for item in self.items.values():
            if item.get("metadata"):
                self.metadata[item["name"]] = item["metadata"]
            if "user_metadata" not in item:
                self.read_user_metadata(item)
        cards = [self.create_item_html(tabname, item, CARD) for item in self.items.values()]
        return "".join([*cards, *(self.create_tree_file_item_html(tabname, item["filename"], item) for item in self.items.values())])

    def list_items(self) -> Iterator[dict[str, Any]]:
        raise NotImplementedError


class EmbeddingsPage(ExtraNetworksPage):
    """The WebUI's own page: `table` is its table of embeddings, `folders` where it looks."""

    def __init__(self) -> None:
        super().__init__("Textual Inversion")
        self.allow_negative_prompt = True
        self.refreshed = 0

    table: dict[str, Any] = {}  # noqa: RUF012  one for all pages, like the WebUI's
    folders: list[str] = []  # noqa: RUF012

    def refresh(self) -> None:
        self.refreshed += 1

    def create_item(self, name: str, index: int | None = None, enable_filter: bool = True) -> dict[str, Any] | None:
        embedding = self.table.get(name)
        if embedding is None:
            return None
        stem = str(Path(embedding.filename).with_suffix(""))  # raises where there is no file, as the WebUI's own does
        keys = {"default": index, **self.get_sort_keys(embedding.filename)}
        shown = {"name": name, "filename": embedding.filename, "shorthash": "", "preview": None, "description": None}
        return {**shown, "search_terms": [], "prompt": quote_js(name), "local_preview": f"{stem}.preview.png", "sort_keys": keys}

    def list_items(self) -> Iterator[dict[str, Any]]:
        for index, name in enumerate(list(self.table)):
            if item := self.create_item(name, index):
                yield item

    def allowed_directories_for_previews(self) -> list[str]:
        return list(self.folders)


class OtherPage(ExtraNetworksPage):
    """Another page of the WebUI."""

    def list_items(self) -> Iterator[dict[str, Any]]:
        yield from ()


def modules() -> dict[str, ModuleType]:
    """Name -> stand-in, fresh ones."""
    shared = _module("modules.shared", opts=SimpleNamespace(), cmd_opts=SimpleNamespace(api=True, api_auth=None), prompt_styles=Styles())
    shared.opts = SimpleNamespace(
        extra_networks_card_show_desc=True,
        samples_format="png",
        include_styles_into_token_counters=True,
        textual_inversion_card_as_tag=False,
    )
    page = type("ExtraNetworksPageTextualInversion", (EmbeddingsPage,), {"shared": shared, "table": {}, "folders": []})
    other = type("ExtraNetworksPageHypernetworks", (OtherPage,), {"shared": shared})
    networks = _module("modules.ui_extra_networks", extra_pages=[other("Lora"), page(), other("Hypernetworks")], allowed_dirs=set())
    networks.quote_js = quote_js
    scripts = _module("modules.scripts", Script=Script, AlwaysVisible=object(), scripts_data=[])
    parent = _module("modules", shared=shared, scripts=scripts, ui_extra_networks=networks)
    return {module.__name__: module for module in (parent, shared, scripts, networks)}


def _module(name: str, **contents: Any) -> ModuleType:
    made = ModuleType(name)
    for key, value in contents.items():
        setattr(made, key, value)
    return made


def _json_beside(filename: str) -> Any:
    beside = Path(filename).with_suffix(".json")
    return json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
