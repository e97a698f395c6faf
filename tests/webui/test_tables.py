"""A WebUI's tables whose methods another extension wraps too, and files that go while they are read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support import webui_hosts


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[webui_hosts.Inside]:
    """A1111 over one embedding, `word`."""
    made = webui_hosts.stand_ins("a1111", tmp_path / "a1111", tmp_path, 64)
    save_file({"emb_params": torch.randn(2, 64)}, tmp_path / "a1111" / "embeddings" / "word.safetensors")
    for name, module in made.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with webui_hosts.forgetting():
        yield made


def a1111() -> Any:
    """A host whose `engine` works over it."""
    from textual_inversion.app.engine import Engine
    from textual_inversion.hosts.a1111 import A1111Host

    host: Any = A1111Host()
    host.engine = Engine(host)
    return host


def wrap(inside: webui_hosts.Inside, calls: list[str]) -> None:
    """As another extension does that notes each call."""
    cls: Any = inside.classes[0]
    scan, read = cls.load_textual_inversion_embeddings, cls.load_from_file

    def noting_scan(table: Any, force_reload: bool = False) -> Any:
        calls.append("scan")
        return scan(table, force_reload=force_reload)

    def noting_read(table: Any, path: str, filename: str) -> Any:
        calls.append("read")
        return read(table, path, filename)

    cls.load_textual_inversion_embeddings, cls.load_from_file = noting_scan, noting_read


def test_another_extensions_wrapper_stays_and_ours_works_once_through_reloads(inside: webui_hosts.Inside) -> None:
    host, table, calls = a1111(), inside.tables[0], list[str]()
    changes: list[int] = []
    host.tables._changed = lambda: changes.append(1)
    for reloads in range(3):
        host.install(host.engine.library)
        changes.clear()
        host.embeddings_changed()
        assert set(table.word_embeddings) == {"word"}
        assert table.read_by_host == []
        assert changes == [1], reloads
        wrap(inside, calls)
        host.remove()
    calls.clear()
    table.load_textual_inversion_embeddings(force_reload=True)
    assert table.read_by_host == ["word.safetensors"]
    assert calls.count("scan") == 3


def test_a_file_that_goes_while_it_is_read_has_a_reason(inside: webui_hosts.Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    host, table = a1111(), inside.tables[0]
    host.install(host.engine.library)

    def gone(path: str, title: str) -> str:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(inside.modules["modules.hashes"], "sha256", gone)
    host.embeddings_changed()
    assert table.word_embeddings == {}
    assert "word.safetensors" in table.skipped_embeddings["word"].reason
    host.remove()


def test_a_name_in_no_encoding_is_known_by_the_librarys_only(inside: webui_hosts.Inside) -> None:
    host, table = a1111(), inside.tables[0]
    save_file({"emb_params": torch.randn(1, 64)}, inside.root / "embeddings" / "c\udcffat.safetensors")
    host.install(host.engine.library)
    host.embeddings_changed()
    assert len(table.word_embeddings) == 2
    assert "".join(table.word_embeddings).encode()
    host.remove()


def test_files_that_cannot_be_read_take_one_line_once(inside: webui_hosts.Inside, caplog: pytest.LogCaptureFixture) -> None:
    host, folder = a1111(), inside.root / "embeddings"
    (folder / "first.pt").write_bytes(b"rubbish" * 9)
    host.install(host.engine.library)
    host.embeddings_changed()
    (said,) = caplog.messages
    assert said.startswith("Textual Inversion: first.pt: ")
    caplog.clear()
    for number in range(8):
        (folder / f"many-{number}.pt").write_bytes(b"rubbish" * 9)
    host.embeddings_changed()
    host.embeddings_changed()
    (said,) = caplog.messages
    assert "8 embedding files cannot be read (" in said
    assert "and 3 more" in said
    host.remove()
