"""Downloads that are cut, refused, limited, sent elsewhere, or are web pages; and where requests may go."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.install_site import TOKEN, Site, embedding_bytes, left_over, serving
from textual_inversion.errors import EmbeddingError, InstallError
from textual_inversion.install import Installer, InstallOptions, Sites, Web
from textual_inversion.install import download as downloading
from textual_inversion.install.addresses import CivitaiModel, HubPlace, LocalFile, WebFile, shown, understand
from textual_inversion.install.web import _is_public, _proxies, tokens_from_environment

COM = "https://civitai.com"
DATA = embedding_bytes(vectors=60)  # some 180 KB


@pytest.fixture
def address(site: Site) -> str:
    """Of a file on the server."""
    site.files["/f/zorb.safetensors"] = DATA
    site.settings["/f/zorb.safetensors"] = {"headers": {"ETag": '"one"'}}
    return f"{site.address}/f/zorb.safetensors"


@pytest.fixture
def plain(installer: Installer) -> Installer:
    """An installer for which the server is no known site."""
    installer.web.sites = Sites("http://127.0.0.1:9", "http://127.0.0.1:9")
    return installer


def test_a_cut_connection_goes_on_where_it_ended(site: Site, plain: Installer, address: str) -> None:
    site.settings["/f/zorb.safetensors"]["cut"] = [70_000, 50_000]
    seen: list[tuple[int, int]] = []
    plain.progress = lambda done, total: seen.append((done, total))
    assert plain.install(address).path.read_bytes() == DATA
    asked = [headers.get("Range") for headers in site.asked("/f/zorb.safetensors")]
    assert asked[0] is None
    assert asked[1] == "bytes=70000-"
    assert asked[2] == "bytes=120000-"
    assert seen[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert left_over(plain.folder) == []


def test_the_next_call_goes_on_after_an_interruption(site: Site, plain: Installer, address: str) -> None:
    plain.should_stop = lambda: True
    with pytest.raises(InstallError, match="was stopped; start it again to go on"):
        plain.install(address)
    kept = next(path for path in plain.folder.iterdir() if path.suffix == ".part").stat().st_size
    assert 0 < kept < len(DATA)
    plain.should_stop = lambda: False
    plain.install(address)
    assert site.asked("/f/zorb.safetensors")[-1]["Range"] == f"bytes={kept}-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(site: Site, plain: Installer, address: str) -> None:
    plain.should_stop = lambda: True
    with pytest.raises(InstallError):
        plain.install(address)
    site.files["/f/zorb.safetensors"] = other = embedding_bytes(9, 50)
    site.settings["/f/zorb.safetensors"]["headers"]["ETag"] = '"two"'
    plain.should_stop = lambda: False
    assert plain.install(address).path.read_bytes() == other


@pytest.mark.parametrize("changes", [
    {"no_range": True}, {"headers": {}}, {"headers": {"ETag": 'W/"one"'}}, {"headers": {"ETag": '"one"', "Content-Range": "bytes 0-9/10"}},
])  # fmt: skip
def test_servers_that_cannot_go_on_are_read_anew(site: Site, plain: Installer, address: str, changes: dict[str, Any]) -> None:
    site.settings["/f/zorb.safetensors"] |= {**changes, "cut": [70_000]}
    assert plain.install(address).path.read_bytes() == DATA


def test_a_connection_that_is_always_cut(site: Site, plain: Installer, address: str, waits: list[float]) -> None:
    site.settings["/f/zorb.safetensors"]["cut"] = [10_000] * 4
    with pytest.raises(InstallError, match=r"after 39 KB of 180 KB, 4 times; start it again to go on from there"):
        plain.install(address)
    assert sum(waits) == 6
    site.settings["/f/zorb.safetensors"]["cut"] = []
    plain.install(address)
    assert site.asked("/f/zorb.safetensors")[-1]["Range"] == "bytes=40000-"


def test_a_server_that_does_not_say_how_much(site: Site, plain: Installer, address: str) -> None:
    site.settings["/f/zorb.safetensors"]["unsized"] = True
    assert plain.install(address).path.read_bytes() == DATA


def test_what_is_too_large_is_not_fetched(site: Site, plain: Installer, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "MOST_BYTES", 100_000)
    with pytest.raises(InstallError, match="has 180 KB; an embedding has some kilobytes"):
        plain.install(address)
    site.settings["/f/zorb.safetensors"]["unsized"] = True
    with pytest.raises(InstallError, match="so this is a LoRA, a checkpoint or an archive"):
        plain.install(address)
    assert list(plain.folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_in_place_of_a_file_is_named(site: Site, plain: Installer, address: str, kind: str) -> None:
    site.files["/f/zorb.safetensors"] = b"\n<!DOCTYPE html><html><head><title>Sign in\n - Files</title></head></html>"
    site.settings["/f/zorb.safetensors"]["headers"]["Content-Type"] = kind
    with pytest.raises(InstallError, match=r"gives a web page \(“Sign in - Files”\) in place of a file"):
        plain.install(address)
    assert list(plain.folder.iterdir()) == []


def test_a_login_is_named(site: Site, installer: Installer) -> None:
    site.civitai(12, 34, DATA)
    site.settings["/api/download/models/34"] = {"redirect": "/login?returnUrl=x", "status": 307}
    with pytest.raises(InstallError, match=r"for users who have logged in.*CIVITAI_API_TOKEN"):
        installer.install(f"{site.address}/models/12")


def test_a_file_in_a_folder_named_login_is_fetched(site: Site, plain: Installer, address: str) -> None:
    site.files["/login/zorb.safetensors"] = DATA
    site.settings["/go"] = {"redirect": "/login/zorb.safetensors", "status": 302}
    assert plain.install(f"{site.address}/go").name == "zorb"


@pytest.mark.parametrize("wait", ["3", None, "date"])
def test_a_short_wish_to_wait_is_followed(site: Site, plain: Installer, address: str, waits: list[float], wait: str | None) -> None:
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=20), usegmt=True)
    site.settings["/f/zorb.safetensors"]["busy"] = [{"Retry-After": soon if wait == "date" else wait} if wait else {}]
    plain.install(address)
    assert 1 < sum(waits) <= 20


def test_a_stop_ends_a_wait(site: Site, plain: Installer, address: str, waits: list[float]) -> None:
    site.settings["/f/zorb.safetensors"]["busy"] = [{"Retry-After": "50"}]
    plain.should_stop = lambda: len(waits) > 1
    with pytest.raises(InstallError, match="was stopped"):
        plain.install(address)
    assert len(waits) == 2


def test_a_stop_and_a_deadline_end_questions_to_the_site(site: Site, installer: Installer, monkeypatch: pytest.MonkeyPatch) -> None:
    site.civitai(12, 34, DATA)
    installer.should_stop = lambda: True
    with pytest.raises(InstallError, match="was stopped"):
        installer.install(f"{site.address}/models/12")
    installer.should_stop = lambda: False
    monkeypatch.setattr("textual_inversion.install.web._LONGEST_SMALL", -1.0)
    with pytest.raises(InstallError, match="took longer than"):
        installer.install(f"{site.address}/models/12")


def test_a_long_wish_to_wait_is_said(site: Site, plain: Installer, address: str, waits: list[float]) -> None:
    site.settings["/f/zorb.safetensors"]["busy"] = [{"Retry-After": "1800"}]
    with pytest.raises(InstallError, match=r"127\.0\.0\.1 takes no more requests now; try again in 30 minutes"):
        plain.install(address)
    assert waits == []


def test_tokens_are_never_said(site: Site, installer: Installer) -> None:
    site.civitai(12, 34, DATA)
    installer.web.tokens = {"civitai": "another-secret-1"}
    site.settings["/api/v1/models/12"]["login"] = True
    with pytest.raises(InstallError, match="it says: The creator wants you to log in") as caught:
        installer.install(f"{site.address}/models/12")
    assert "another-secret-1" not in str(caught.value)
    assert "that is set (CIVITAI_API_TOKEN) does not open it" in str(caught.value)
    assert "another-secret-1" not in repr(installer)


@pytest.mark.parametrize("target", [
    "file:///etc/passwd", "ftp://127.0.0.1/x", "http://user:word@127.0.0.1/x", "http://[::1/x", "", "data:,x",
])  # fmt: skip
def test_redirects_to_other_things_are_refused(site: Site, plain: Installer, target: str) -> None:
    site.settings["/go"] = {"redirect": target or " ", "status": 302}
    with pytest.raises(InstallError, match="leads to something that is not a web address"):
        plain.install(f"{site.address}/go")


@pytest.mark.parametrize("host", [
    "127.0.0.2", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]", "2130706433", "127.1",
])  # fmt: skip
def test_no_redirect_leads_into_the_own_network(site: Site, plain: Installer, host: str) -> None:
    site.settings["/go"] = {"redirect": f"http://{host}:9/secret", "status": 302}
    with pytest.raises(InstallError, match="in its own network"):
        plain.install(f"{site.address}/go")


def test_a_name_that_stands_for_the_own_network_is_refused(site: Site, plain: Installer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is looked up by the connection itself, so that it cannot change in between."""
    port = int(site.address.rpartition(":")[2])
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: found if host == "evil.test" else real(host, *rest, **more))
    site.settings["/go"] = {"redirect": f"http://evil.test:{port}/secret", "status": 302}
    site.files["/secret"] = DATA
    with pytest.raises(InstallError, match=r"evil\.test lies on this computer or in its own network"):
        plain.install(f"{site.address}/go")
    assert site.asked("/secret") == []


def test_where_the_user_may_not_name_the_own_network(site: Site, tmp_path: Path) -> None:
    guarded = Installer(Web(trusts_typed=False), tmp_path)
    with pytest.raises(InstallError, match="in its own network, so it is not asked"):
        guarded.install(f"{site.address}/f")
    assert site.requests == []


def test_trust_in_a_host_is_for_one_port(site: Site, plain: Installer) -> None:
    with serving() as other:
        other.files["/secret"] = DATA
        site.settings["/go"] = {"redirect": f"{other.address}/secret", "status": 302}
        with pytest.raises(InstallError, match="in its own network"):
            plain.install(f"{site.address}/go")
        assert other.requests == []


def test_redirects_that_never_end(site: Site, plain: Installer) -> None:
    site.settings["/go"] = {"redirect": "/go", "status": 301}
    with pytest.raises(InstallError, match="without an end"):
        plain.install(f"{site.address}/go")


def test_no_redirect_leads_from_https_to_http() -> None:
    from textual_inversion.install.web import _next_address

    assert _next_address("https://a.test/x", "/y z") == "https://a.test/y%20z"
    assert _next_address("http://a.test/x", "https://b.test/") == "https://b.test/"
    with pytest.raises(InstallError, match="leads from an encrypted connection"):
        _next_address("https://a.test/x", "http://a.test/x")


def test_a_host_that_is_not_there(plain: Installer) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(InstallError, match="cannot be reached: Connection refused"):
        plain.install(f"http://127.0.0.1:{port}/x.pt?token={TOKEN}")


def test_a_server_that_never_answers(plain: Installer) -> None:
    plain.web.timeout = 0.2
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(InstallError, match="it did not answer in time"):
            plain.install(f"http://127.0.0.1:{silent.getsockname()[1]}/x.pt")


@pytest.mark.parametrize(("number", "public"), [
    ("8.8.8.8", True), ("127.0.0.1", False), ("10.1.2.3", False), ("192.168.1.1", False), ("172.20.0.1", False), ("169.254.1.1", False),
    ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False), ("100.64.0.1", False), ("2606:4700::1", True), ("::1", False),
    ("fe80::1%eth0", False), ("fc00::1", False), ("::ffff:127.0.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
    ("64:ff9b::808:808", True),
])  # fmt: skip
def test_which_addresses_belong_to_the_internet(number: str, public: bool) -> None:
    assert _is_public(number) is public


@pytest.mark.parametrize(("text", "source"), [
    ("https://civitai.com/models/7808/easynegative", CivitaiModel(COM, 7808, None)),
    ("https://www.civitai.com/models/7808?modelVersionId=9208", CivitaiModel(COM, 7808, 9208)),
    ("civitai.com/models/7808", CivitaiModel(COM, 7808, None)),
    ("https://civitai.red/models/7808", CivitaiModel("https://civitai.red", 7808, None)),
    ("https://civitai.com/api/download/models/9208?type=Model&format=SafeTensor&token=x",
     CivitaiModel(COM, None, 9208, {"type": "Model", "format": "SafeTensor"}, "x")),
    ("https://huggingface.co/sd-concepts-library/cat-toy", HubPlace("https://huggingface.co", "sd-concepts-library/cat-toy")),
    ("https://hf.co/a/b/blob/main/x%20y.pt", HubPlace("https://huggingface.co", "a/b", "main", "x y.pt", True)),
    ("https://huggingface.co/a/b/tree/v1/sub", HubPlace("https://huggingface.co", "a/b", "v1", "sub")),
    ("https://huggingface.co/a/b/resolve/refs%2Fpr%2F1/x.bin", HubPlace("https://huggingface.co", "a/b", "refs/pr/1", "x.bin", True)),
    ("https://huggingface.co/a/b/tree/refs%2Fpr%2F1/s%20t", HubPlace("https://huggingface.co", "a/b", "refs/pr/1", "s t")),
    (f"https://civitai.com/models/7?modelVersionId={'9' * 5000}", CivitaiModel(COM, 7, None)),
    ("~nosuchuser/x.pt", LocalFile(Path("~nosuchuser/x.pt"))),
    ("https://hf-mirror.com/a/b", HubPlace("https://hf-mirror.com", "a/b")),
    ("https://huggingface.co/datasets/a/b/resolve/main/x.pt", HubPlace("https://huggingface.co", "datasets/a/b", "main", "x.pt", True)),
    ("https://github.com/a/b/blob/main/x.pt", WebFile("https://github.com/a/b/raw/main/x.pt")),
    ("https://liblibai-online.liblib.cloud/x.pt?auth=1", WebFile("https://liblibai-online.liblib.cloud/x.pt?auth=1")),
    ("<https://a.test/Ü b.pt>", WebFile("https://a.test/%C3%9C%20b.pt")),
    ("C:\\Users\\me\\x.pt", LocalFile(Path("C:\\Users\\me\\x.pt"))),
    ("embeddings/x.pt", LocalFile(Path("embeddings/x.pt"))),
])  # fmt: skip
def test_what_people_paste(text: str, source: object) -> None:
    assert understand(text, Sites()) == source


@pytest.mark.parametrize(("text", "message"), [
    ("", "Give the address"), ("ftp://a.test/x.pt", "ftp: are not fetched"), ("https://me:word@a.test/x.pt", "holds a user's name"),
    ("https://", "names no host"), ("https://a.test:port/x", "no web address"), ("https://civitai.com/images/5", "not a model's page"),
    ("https://huggingface.co/docs/hub", "not a repository's page"), ("https://www.liblib.art/modelinfo/abc", "LiblibAI gives files"),
    (f"https://civitai.com/models/{'9' * 5000}", "not a model's page"), (f"civitai:{'9' * 5000}", "are not fetched"),
    ("javascript:alert(1)", "are not fetched"),
])  # fmt: skip
def test_what_is_no_address(text: str, message: str) -> None:
    with pytest.raises(InstallError, match=message):
        understand(text, Sites())


def test_the_disk_is_not_touched_where_files_are_not_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def touched(path: object) -> bool:
        raise AssertionError(f"{path} was looked up")

    monkeypatch.setattr("os.path.lexists", touched)
    assert understand(r"\\server\share\x.pt", Sites()) == LocalFile(Path(r"\\server\share\x.pt"))
    assert understand("civitai.com/models/7808", Sites(), files_too=False) == CivitaiModel(COM, 7808, None)
    monkeypatch.undo()
    guarded = Installer(Web(), tmp_path / "e", files_too=False)
    with pytest.raises(InstallError, match="Give a web address"):
        guarded.install(r"\\server\share\x.pt")
    assert not guarded.folder.exists()


def test_messages_hold_no_query() -> None:
    assert shown("https://me:word@a.test/x%20y.pt?token=secret#part") == "https://a.test/x y.pt"


def test_tokens_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CIVITAI_API_TOKEN", "CIVITAI_TOKEN", "CIVITAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert tokens_from_environment() == {}
    (tmp_path / "token").write_text("from-login\n")
    monkeypatch.setenv("CIVITAI_TOKEN", " c ")
    assert tokens_from_environment() == {"civitai": "c"}  # the login of another program stays its own
    monkeypatch.setenv("HF_TOKEN", "h")
    assert tokens_from_environment()["hub"] == "h"


def test_a_token_is_for_the_siblings_of_a_site_and_for_nobody_else() -> None:
    web = Web()
    for address in ("https://civitai.com/api/v1/models/1", "https://civitai.red/api/v1/models/1", "https://civitai.green/x"):
        assert web.site_of(address) == "civitai"
    for address in ("http://civitai.com/x", "https://civitai.com.evil.test/x", "https://image.civitai.com/x", "https://notcivitai.com/"):
        assert web.site_of(address) == ""
    assert web.site_of("https://huggingface.co/a/b/resolve/main/x") == "hub"
    assert web.site_of("https://cdn-lfs.huggingface.co/x") == ""


def test_a_mirror_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.test/")
    assert understand("https://huggingface.co/a/b", Sites.from_environment()) == HubPlace("https://mirror.test", "a/b")


def test_a_proxy_carries_the_request(site: Site, plain: Installer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy on this machine is the user's own setting; it does not open the own network to redirects."""
    with serving() as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        proxy.files["/zorb.pt"] = DATA
        assert plain.install("http://files.test/zorb.pt", InstallOptions()).name == "zorb"
        proxy.settings["/go"] = {"redirect": "http://127.0.0.2/secret", "status": 302}
        with pytest.raises(InstallError, match="in its own network"):
            plain.install("http://files.test/go")
    assert site.requests == []


def test_only_proxies_are_trusted_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "10.0.0.1")
    monkeypatch.setenv("http_proxy", "proxy.test:3128")
    monkeypatch.setenv("https_proxy", "http://secure.test")
    monkeypatch.setenv("all_proxy", "http://[broken:x")
    assert _proxies() == {("proxy.test", 3128), ("secure.test", 80), ("secure.test", 443)}


@pytest.mark.parametrize("proxy", ["http://[broken", "http://127.0.0.1:port", "ftp://"])
def test_a_malformed_proxy_is_said(plain: Installer, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(InstallError, match="cannot be reached"):
        plain.install("http://files.test/zorb.pt")


def test_one_program_at_a_time_fetches_a_file(plain: Installer, address: str) -> None:
    plain.folder.mkdir()
    with downloading.alone(address, plain.folder), pytest.raises(InstallError, match="is being fetched already"):
        plain.install(address)
    assert plain.install(address).name == "zorb"
    assert left_over(plain.folder) == []


def test_a_lock_that_a_killed_program_left_hinders_nobody(plain: Installer, address: str) -> None:
    plain.folder.mkdir()
    downloading._part_of(plain.folder, address).with_suffix(".lock").touch()
    assert plain.install(address).name == "zorb"


def test_old_remains_are_deleted(plain: Installer, address: str) -> None:
    plain.folder.mkdir()
    for name, days in ((".ti-install-0.part", 8), (".ti-install-0.part.json", 8), (".ti-install-1.part", 6), ("own.pt", 99)):
        (plain.folder / name).touch()
        os.utime(plain.folder / name, (time.time() - days * 86400,) * 2)
    plain.install(address)
    assert left_over(plain.folder) == [".ti-install-1.part"]
    assert (plain.folder / "own.pt").exists()


def test_an_error_of_the_reader_leaves_nothing(plain: Installer, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> str:
        raise EmbeddingError("cannot be read")

    monkeypatch.setattr("textual_inversion.install.placing.ending_for", failing)
    with pytest.raises(EmbeddingError):
        plain.install(address)
    assert list(plain.folder.iterdir()) == []


def test_a_file_without_validator_forgets_that_of_another(site: Site, plain: Installer, address: str) -> None:
    plain.should_stop = lambda: True
    for headers in ({"ETag": '"one"'}, {}):
        site.settings["/f/zorb.safetensors"]["headers"] = headers
        with pytest.raises(InstallError, match="was stopped"):
            plain.install(address)
    note = next(path for path in plain.folder.iterdir() if path.name.endswith(".part.json"))
    assert json.loads(note.read_text()) == {"validator": ""}
