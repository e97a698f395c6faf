"""Our page in the place of the WebUI's own, over stand-ins of its classes."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.webui.conftest import Host, write


@pytest.fixture
def page(webui: SimpleNamespace, host: Host) -> Any:
    from textual_inversion.hosts.webui.cards import replace_page

    assert replace_page(host, host.engine)  # type: ignore[arg-type]
    return webui.ui_extra_networks.extra_pages[1]


def folder(host: Host) -> Path:
    return host.folders().embeddings


def cards(page: Any) -> dict[str, str]:
    """Card name -> its HTML, as the whole page has it."""
    found = re.findall(r'<div class="card".*?</div>', page.create_html("txt2img"), re.DOTALL)
    return {html.unescape(re.search('data-name="(.*?)"', card)[1]): card for card in found}  # type: ignore[index]


def test_it_takes_the_place_of_the_webuis_own_once(page: Any, webui: SimpleNamespace, host: Host) -> None:
    from textual_inversion.hosts.webui.cards import replace_page

    pages = webui.ui_extra_networks.extra_pages
    assert [shown.name for shown in pages] == ["lora", "textual inversion", "hypernetworks"]
    assert isinstance(page, type(webui.page))
    assert page.allow_negative_prompt
    assert replace_page(host, host.engine)  # type: ignore[arg-type]
    assert pages[1] is page
    assert str(folder(host)) in webui.ui_extra_networks.allowed_dirs
    del pages[1]
    assert not replace_page(host, host.engine)  # type: ignore[arg-type]


def test_usable_and_unusable_files_are_there(page: Any, host: Host) -> None:
    write(folder(host), "cat", 2)
    write(folder(host), "sub/cat")
    write(folder(host), "wide", 3, width=768)
    (folder(host) / "broken.pt").write_bytes(b"rubbish" * 20)
    shown = cards(page)
    assert list(shown) == ["cat", "broken", "cat (sub/cat.safetensors)", "wide"]
    assert "2 vectors · 64 wide" in shown["cat"]
    assert "data-ti-unfit" not in shown["cat"]
    for name in ("broken", "cat (sub/cat.safetensors)", "wide"):
        assert "data-ti-unfit" in shown[name]
        assert "ti-card-reason" in shown[name]
        assert 'onclick="popup(' in shown[name]
    assert page.items["cat"]["shorthash"] in page.items["cat"]["search_terms"][1]
    assert "SD1" in page.items["wide"]["search_terms"]
    assert page.metadata["wide"]["vectors"] == 3


def test_a_click_inserts_the_word_or_a_tag(page: Any, host: Host) -> None:
    write(folder(host), "cat")
    write(folder(host), "toy (old)")
    (folder(host) / "toy (old).json").write_text(json.dumps({"preferred weight": 0.8}), encoding="utf-8")
    shown = cards(page)
    assert "cardClicked('txt2img', \"cat\", '', true);" in html.unescape(shown["cat"])
    assert r'textualInversion.insert("txt2img", "toy \\(old\\)", "")' in html.unescape(shown["toy (old)"])
    host.options["card_as_tag"] = True
    shown = cards(page)
    assert "cardClicked('txt2img', \"<cat:1>\"" in html.unescape(shown["cat"])
    assert '"<toy (old):0.8>"' in html.unescape(shown["toy (old)"])


def test_a_pair_fills_both_prompts(page: Any, host: Host) -> None:
    write(folder(host), "dream")
    write(folder(host), "dream-neg")
    shown = cards(page)
    assert 'cardClicked(\'txt2img\', "dream", "dream-neg", true);' in html.unescape(shown["dream"])
    assert "with dream-neg" in shown["dream"]


def test_names_from_files_are_escaped_everywhere(page: Any, host: Host) -> None:
    write(folder(host), "<img src=x onerror=alert(1)>")
    write(folder(host), 'it\'s "quoted"')
    made = page.create_html("txt2img")
    assert "<img" not in made
    assert not re.search(r'="[^"]*it\'s "', made)


def test_a_name_in_no_encoding_can_be_sent_to_a_page(page: Any, host: Host) -> None:
    write(folder(host), "cat")
    write(folder(host), "d\udcffog", width=768)
    made = page.create_html("txt2img")
    assert made.encode()
    assert {"cat"} < set(cards(page))
    name = next(name for name in page.items if name != "cat")
    assert page.create_item_html("txt2img", page.create_item(name), "{name} {copy_path_button} {description}").encode()
    assert json.dumps(page.metadata, ensure_ascii=False).encode()


def test_one_failing_card_says_so_and_the_others_are_there(page: Any, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder(host), "cat")
    write(folder(host), "dog")
    find = page.find_preview

    def fail(path: str) -> Any:
        if path.endswith("cat"):
            raise OSError("the disk is gone")
        return find(path)

    monkeypatch.setattr(page, "find_preview", fail)
    shown = cards(page)
    assert "the disk is gone" in shown["cat"]
    assert "data-ti-unfit" not in shown["dog"]


def test_when_the_library_fails_the_webuis_own_list_is_shown(page: Any, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    page.table["theirs"] = SimpleNamespace(filename=str(write(folder(host), "theirs")))
    host.known = {"theirs": 1}

    def fail() -> Any:
        raise OSError("no such share")

    monkeypatch.setattr(host.engine, "library", fail)
    assert list(cards(page)) == ["theirs"]


def test_what_only_the_webui_knows_is_there_too_and_a_broken_one_harms_nobody(page: Any, host: Host, tmp_path: Path) -> None:
    write(folder(host), "cat (x)")
    page.table["from-lora"] = SimpleNamespace(filename=str(write(tmp_path / "lora", "from-lora")))
    page.table["no-file"] = SimpleNamespace(filename=None)
    host.known = {"from-lora": 1, "no-file": 1, "cat (x)": 1, "cat _x_": 1}
    assert list(cards(page)) == ["cat (x)", "from-lora"]


def test_notes_and_metadata_of_other_programs_beside_a_file(page: Any, host: Host) -> None:
    for name, beside in {"a": "[1]", "b": '{"description": "mine"}', "c": '{"description": "mine"}'}.items():
        write(folder(host), name)
        (folder(host) / f"{name}.json").write_text(beside, encoding="utf-8")
        (folder(host) / f"{name}.txt").write_text("text <b>", encoding="utf-8")
    (folder(host) / "c.json").write_text("{}", encoding="utf-8")
    shown = cards(page)
    assert shown["a"].endswith("text &lt;b&gt;</span></div>")
    assert "mine" in shown["b"]
    assert "64 wide" in shown["b"]
    assert "text &lt;b&gt;" in shown["c"]


def test_a_single_card_is_made_anew(page: Any, host: Host) -> None:
    write(folder(host), "cat", 1)
    cards(page)
    write(folder(host), "cat", 2)
    item = page.create_item("cat", enable_filter=False)
    page.read_user_metadata(item, use_cache=False)
    assert "2 vectors" in page.create_item_html("txt2img", item, '<div {sort_keys} class="card">{description}</div>')
    with pytest.raises(LookupError, match="refresh"):
        page.create_item("gone", enable_filter=False)


def test_refresh_reaches_the_webuis_table_and_the_folder(page: Any, host: Host) -> None:
    assert list(cards(page)) == []
    write(folder(host), "new")
    page.refresh()
    assert page.refreshed == 1
    assert [entry.name for entry in host.engine.library().entries()] == ["new"]


def test_without_descriptions_only_the_reason_stays(page: Any, host: Host, webui: SimpleNamespace) -> None:
    write(folder(host), "cat")
    write(folder(host), "wide", width=768)
    webui.shared.opts.extra_networks_card_show_desc = False
    shown = cards(page)
    assert "ti-card-facts" not in shown["cat"] + shown["wide"]
    assert "ti-card-reason" in shown["wide"]


def test_the_stand_ins_leave_nothing_behind() -> None:
    assert "modules" not in sys.modules
