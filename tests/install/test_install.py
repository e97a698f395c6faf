"""Embeddings from addresses as people paste them, against a server that behaves like each site."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.install_site import TOKEN, Site, embedding_bytes, left_over, picture_bytes, serving
from textual_inversion import formats
from textual_inversion.errors import InstallError, InvalidNameError
from textual_inversion.install import Installer, InstallOptions, Sites, Web
from textual_inversion.library import EmbeddingLibrary


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("page", [
    "/models/12/dotted-star", "/models/12?modelVersionId=34", "/api/v1/models/12", "/api/v1/model-versions/34",
    "/api/download/models/34", "/api/download/models/34?type=Model&format=SafeTensor",
])  # fmt: skip
def test_civitai_page_version_and_download(site: Site, installer: Installer, page: str) -> None:
    data = embedding_bytes()
    site.civitai(12, 34, data)
    installed = installer.install(site.address + page)
    assert installed.path.read_bytes() == data
    assert names(installer.folder) == [
        "dotted-star.civitai.info", "dotted-star.json", "dotted-star.preview.png", "dotted-star.safetensors"
    ]  # fmt: skip
    assert installed.agrees == ("SHA256", "AutoV2")
    assert formats.load(installed.path).num_vectors == 2
    entry = EmbeddingLibrary([installer.folder]).find("dotted-star")
    assert entry is not None
    assert entry.about.trained_words == ("dottedstar", "a dotted star")
    assert entry.about.base_model == "SD1"
    assert entry.about.model_name == "Dotted star"
    assert entry.preview == installer.folder / "dotted-star.preview.png"
    with Image.open(entry.preview) as picture:
        assert picture.size == (768, 512)
    assert json.loads((installer.folder / "dotted-star.json").read_text())["activation text"] == "dottedstar, a dotted star"
    assert "dottedstar" in installed.text
    assert "SD 1.5" in installed.text


@pytest.mark.parametrize("text", ["civitai:12@34", "urn:air:sd1:embedding:civitai:12@34"])
def test_civitai_short_forms(site: Site, installer: Installer, text: str) -> None:
    site.civitai(12, 34, embedding_bytes())
    assert installer.install(text).name == "dotted-star"


@pytest.mark.parametrize(("query", "name"), [
    ("", "plain"), ("?fileId=2", "half"), ("?format=PickleTensor", "old"), ("?fileId=3&type=Model", "old"),
])  # fmt: skip
def test_one_of_several_files(site: Site, installer: Installer, query: str, name: str) -> None:
    kinds = (("plain", "safetensors", "SafeTensor"), ("half", "safetensors", "SafeTensor"), ("old", "pt", "PickleTensor"))
    files = []
    for number, (stem, ending, kind) in enumerate(kinds, start=1):
        site.files[f"/f/{number}"] = embedding_bytes(number)
        facts = {"id": number, "name": f"{stem}.{ending}", "type": "Model", "primary": number == 1, "metadata": {"format": kind}}
        files.append({**facts, "downloadUrl": f"{site.address}/f/{number}"})
    site.civitai(12, 34, embedding_bytes(), files=files)
    installed = installer.install(f"{site.address}/api/download/models/34{query}", InstallOptions(picture=False))
    assert installed.name == name
    assert "It comes with" in installed.text


def test_a_file_name_that_says_nothing_gives_way_to_the_models(site: Site, installer: Installer) -> None:
    site.civitai(12, 34, embedding_bytes(), file_name="34.safetensors")
    assert installer.install(f"{site.address}/models/12").name == "Dotted star"


def test_another_type_is_named(site: Site, installer: Installer) -> None:
    site.civitai(12, 34, embedding_bytes(), type="LORA")
    with pytest.raises(InstallError, match="of the type LORA"):
        installer.install(f"{site.address}/models/12")
    assert site.asked("/api/download/models/34") == []


def test_an_archive_is_named(site: Site, installer: Installer) -> None:
    site.civitai(12, 34, embedding_bytes(), file_name="pack.zip")
    with pytest.raises(InstallError, match=r"no embedding file, but pack\.zip"):
        installer.install(f"{site.address}/models/12")


def test_a_page_that_is_no_model(site: Site, installer: Installer) -> None:
    with pytest.raises(InstallError, match="not a model's page"):
        installer.install(f"{site.address}/user/somebody")


@pytest.mark.parametrize("page", [
    "", "/tree/main", "/blob/main/learned_embeds.bin", "/resolve/main/learned_embeds.bin", "/resolve/main/learned_embeds.bin?download=true",
])  # fmt: skip
def test_hub_repository_and_file(site: Site, installer: Installer, page: str) -> None:
    data = embedding_bytes(vectors=4)
    files = {"learned_embeds.bin": data, "token_identifier.txt": b"<cat-toy>", "concept_images/0.jpeg": picture_bytes(), "README.md": b"x"}
    site.hub("concepts/cat-toy", files, cardData={"base_model": "runwayml/stable-diffusion-v1-5"})
    installer.web.sites = Sites("http://127.0.0.1:9", site.address)
    installed = installer.install(f"{site.address}/concepts/cat-toy{page}")
    assert installed.name == "cat-toy"
    assert installed.path.name == "cat-toy.safetensors"  # what its bytes are
    assert installed.agrees == ("SHA256",)
    assert installed.base_model == "runwayml/stable-diffusion-v1-5"
    assert (installer.folder / "cat-toy.preview.png").is_file()
    assert left_over(installer.folder) == []


def test_a_repository_of_several_names_them(site: Site, installer: Installer) -> None:
    installer.web.sites = Sites("http://127.0.0.1:9", site.address)
    site.hub("somebody/pack", {"a.pt": b"1", "b.safetensors": b"2", "optimizer.bin": b"3"})
    with pytest.raises(InstallError, match=r"2 files that could be embeddings \(a.pt, b.safetensors\)"):
        installer.install(f"{site.address}/somebody/pack")
    site.hub("somebody/none", {"README.md": b"1"})
    with pytest.raises(InstallError, match="no file that could be an embedding"):
        installer.install(f"{site.address}/somebody/none")
    with pytest.raises(InstallError, match=r"nothing at .* or it is not public"):
        installer.install(f"{site.address}/somebody/missing")


def test_a_direct_address(site: Site, installer: Installer) -> None:
    site.files["/files/my%20word.pt"] = embedding_bytes()
    with serving() as other:
        other.files["/files/my%20word.pt"] = embedding_bytes()
        installed = installer.install(f"{other.address}/files/my word.pt#top")
    assert installed.name == "my word"
    assert "with nothing to compare it to" in installed.text


def test_what_lies_beside_it_holds_no_query_of_its_address(installer: Installer) -> None:
    """A query may hold a token or a signature."""
    with serving() as other:
        other.files["/files/zorb.pt"] = embedding_bytes()
        installed = installer.install(f"{other.address}/files/zorb.pt?auth=secret-99")
        assert other.requests[0][0] == "/files/zorb.pt?auth=secret-99"
        notes = json.loads((installer.folder / "zorb.json").read_text())["notes"]
    assert notes == f"From {other.address}/files/zorb.pt."
    assert "secret-99" not in installed.text


def test_a_name_sent_by_the_server_leads_nowhere_else(installer: Installer) -> None:
    with serving() as other:
        other.files["/f"] = embedding_bytes()
        other.settings["/f"] = {"headers": {"Content-Disposition": "attachment; filename*=UTF-8''..%2F..%2Fetc%2Fstern%20%E2%98%85.pt"}}
        installed = installer.install(f"{other.address}/f")
    assert installed.path.parent == installer.folder
    assert installed.name == "stern _"


def test_files_of_this_computer_with_their_company(tmp_path: Path, installer: Installer) -> None:
    source = tmp_path / "down loads" / "zorb.safetensors"
    source.parent.mkdir()
    source.write_bytes(embedding_bytes())
    (source.parent / "zorb.civitai.info").write_text('{"baseModel": "SD 1.5"}')
    installer.install(f'"{source}"')
    assert names(installer.folder) == ["zorb.civitai.info", "zorb.safetensors"]
    assert source.is_file()
    assert installer.install(str(source)).was_there
    assert installer.install(source.as_uri()).was_there
    with pytest.raises(InstallError, match="does not exist"):
        installer.install(str(tmp_path / "missing.pt"))
    installer.files_too = False
    with pytest.raises(InstallError, match="Give a web address"):
        installer.install(str(source))


def test_the_same_again_and_another_of_that_name(installer: Installer) -> None:
    with serving() as other:
        for number, path in enumerate(("/a/zorb.pt", "/b/ZORB.safetensors")):
            other.files[path] = embedding_bytes(number)
        first = installer.install(f"{other.address}/a/zorb.pt")
        before = first.path.stat()
        again = installer.install(f"{other.address}/a/zorb.pt", InstallOptions(name="other"))
        assert again.was_there
        assert again.path == first.path
        assert first.path.stat() == before
        with pytest.raises(InstallError, match=r"zorb\.safetensors .* already, which is another"):
            installer.install(f"{other.address}/b/ZORB.safetensors")
        assert formats.load(first.path).vectors["clip_l"].equal(formats.load(installer.folder / "zorb.safetensors").vectors["clip_l"])
        installed = installer.install(f"{other.address}/b/ZORB.safetensors", InstallOptions(name="zorb two"))
        assert installed.path.name == "zorb two.safetensors"
        assert len(other.asked("/b/ZORB.safetensors")) == 2
        with pytest.raises(InvalidNameError):
            installer.install(f"{other.address}/b/ZORB.safetensors?x", InstallOptions(name="../up"))
    assert names(installer.folder) == ["zorb two.json", "zorb two.safetensors", "zorb.json", "zorb.safetensors"]


@pytest.mark.parametrize("digits", [8, 10, 12, 64])
def test_a_hash_that_the_user_has(installer: Installer, digits: int) -> None:
    data = embedding_bytes()
    digest = hashlib.sha256(data).hexdigest()
    with serving() as other:
        other.files["/zorb.pt"] = data
        with pytest.raises(InstallError, match="damaged or exchanged"):
            installer.install(f"{other.address}/zorb.pt", InstallOptions(digest="0" * digits))
        assert names(installer.folder) == []
        assert installer.install(f"{other.address}/zorb.pt", InstallOptions(digest=digest[:digits].upper())).agrees == ("hash",)
        with pytest.raises(InstallError, match="is no hash"):
            installer.install(f"{other.address}/zorb.pt", InstallOptions(digest="123"))


@pytest.mark.parametrize("hashes", [{"SHA256": "0" * 64}, {"AutoV2": "0123456789"}])
def test_a_file_that_is_another_than_its_site_says(site: Site, installer: Installer, hashes: dict[str, str]) -> None:
    site.civitai(12, 34, embedding_bytes(), hashes=hashes)
    with pytest.raises(InstallError, match=f"its {next(iter(hashes))} is .* not {next(iter(hashes.values()))}"):
        installer.install(f"{site.address}/models/12")
    assert names(installer.folder) == []


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("ran",))


def test_what_holds_code_or_no_embedding_gets_no_name(installer: Installer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"x": _Runs()}, tmp_path / "bad.pt")
    torch.save({"weights": torch.zeros(2, 3, 4)}, tmp_path / "stranger.pt")
    broken = embedding_bytes()[:300]
    with serving() as other:
        for name, data, message in (
            ("bad.pt", (tmp_path / "bad.pt").read_bytes(), "tries to run code"),
            ("stranger.pt", (tmp_path / "stranger.pt").read_bytes(), "was not installed"),
            ("broken.safetensors", broken, "was not installed"),
            ("empty.pt", b"", "empty"),
            ("lfs.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "was not installed"),
        ):
            other.files[f"/{name}"] = data
            with pytest.raises(InstallError, match=message) as caught:
                installer.install(f"{other.address}/{name}")
            assert ".part" not in str(caught.value)
    assert names(installer.folder) == []
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", b""])
def test_a_picture_that_cannot_be_had_is_said(site: Site, installer: Installer, data: bytes) -> None:
    site.civitai(12, 34, embedding_bytes())
    site.files["/images/one.jpeg"] = data
    assert "picture was not kept" in installer.install(f"{site.address}/models/12").text


def test_what_the_user_keeps_beside_it_stays(site: Site, installer: Installer) -> None:
    site.civitai(12, 34, embedding_bytes())
    installer.folder.mkdir()
    (installer.folder / "dotted-star.json").write_text('{"notes": "mine"}')
    (installer.folder / "dotted-star.preview.png").write_bytes(b"mine")
    installer.install(f"{site.address}/models/12")
    assert (installer.folder / "dotted-star.json").read_text() == '{"notes": "mine"}'
    assert (installer.folder / "dotted-star.preview.png").read_bytes() == b"mine"


def test_no_picture_where_none_is_wanted(site: Site, installer: Installer) -> None:
    site.civitai(12, 34, embedding_bytes())
    installer.install(f"{site.address}/models/12", InstallOptions(picture=False))
    assert site.asked("/images/one.jpeg") == []


def test_tokens_go_to_their_site_only(site: Site, installer: Installer) -> None:
    site.civitai(12, 34, embedding_bytes())
    with serving() as other:
        other.files["/signed"] = embedding_bytes()
        site.settings["/api/download/models/34"] = {"redirect": f"{other.address}/signed", "status": 307, "login": True}
        installer.web.sites = Sites(site.address, other.address)  # so that the redirect may lead to this machine
        installer.install(f"{site.address}/models/12", InstallOptions(picture=False))
        assert site.asked("/api/v1/models/12")[0]["Authorization"] == f"Bearer {TOKEN}"
        assert "Authorization" not in other.asked("/signed")[0]
        installer.web.sites = Sites(site.address, site.address)
        other.files["/plain.pt"] = embedding_bytes(5)
        installer.install(f"{other.address}/plain.pt")
        assert "Authorization" not in other.asked("/plain.pt")[0]


def test_a_token_is_not_sent_again_on_the_way_back(site: Site, installer: Installer) -> None:
    site.civitai(12, 34, embedding_bytes())
    with serving() as other:
        other.settings["/there"] = {"redirect": f"{site.address}/bucket/34.bin", "status": 302}
        site.settings["/api/download/models/34"] = {"redirect": f"{other.address}/there", "status": 307}
        installer.web.sites = Sites(site.address, other.address)
        installer.install(f"{site.address}/models/12", InstallOptions(picture=False))
    assert "Authorization" not in site.asked("/bucket/34.bin")[0]


def test_a_token_in_the_address_goes_to_civitai_only(site: Site, installer: Installer) -> None:
    with serving() as hub:
        hub.files["/f.safetensors"] = embedding_bytes()
        installer.web.sites, installer.web.tokens = Sites(site.address, hub.address), {}
        files = [{"name": "f.safetensors", "downloadUrl": f"{hub.address}/f.safetensors", "hashes": {"SHA256": "none", "AutoV2": "?"}}]
        site.civitai(12, 34, embedding_bytes(), files=files)
        installed = installer.install(f"{site.address}/models/12?token={TOKEN}", InstallOptions(picture=False))
        assert "Authorization" not in hub.asked("/f.safetensors")[0]
    assert installed.agrees == ()
    assert site.asked("/api/v1/models/12")[0]["Authorization"] == f"Bearer {TOKEN}"


def test_a_token_in_the_address_is_used_and_never_shown(site: Site, tmp_path: Path) -> None:
    site.civitai(12, 34, embedding_bytes())
    site.settings["/api/download/models/34"]["login"] = True
    bare = Installer(Web(Sites(site.address, "http://127.0.0.1:9"), {}), tmp_path / "e")
    with pytest.raises(InstallError, match=r"needs a login or permission .*CIVITAI_API_TOKEN") as caught:
        bare.install(f"{site.address}/models/12?token=wrong-token-99")
    assert "wrong-token-99" not in str(caught.value)
    assert bare.install(f"{site.address}/api/download/models/34?token={TOKEN}").name == "dotted-star"
    assert all("token=" not in path for path, _ in site.requests)
    assert TOKEN not in repr(bare) + "".join(path.read_text() for path in (tmp_path / "e").glob("*.json"))


def test_an_embedding_that_prompts_cannot_use_does_not_speak_for_the_file(
    installer: Installer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "zorb.safetensors"
    source.write_bytes(embedding_bytes())
    infos = formats.describe_all(source)
    monkeypatch.setattr(formats, "describe_all", lambda _: [replace(infos[0], unusable="it is for Flux"), *infos])
    installed = installer.install(str(source))
    assert installed.info == infos[0]
