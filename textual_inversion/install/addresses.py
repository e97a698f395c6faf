"""Understands what people paste: addresses of Civitai and Hugging Face, other web addresses, and files. Opens nothing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, parse_qsl, quote, unquote, urlsplit, urlunsplit
from urllib.request import url2pathname

from textual_inversion.errors import InstallError

CIVITAI_HOSTS = ("civitai.com", "civitai.green", "civitai.red")
HUB_HOSTS = ("huggingface.co", "hf.co")
_HUB_MIRRORS = ("hf-mirror.com",)
_KNOWN_HOSTS = (*CIVITAI_HOSTS, *HUB_HOSTS, *_HUB_MIRRORS, "github.com", "liblib.art", "liblib.ai")
_LIBLIB = re.compile(r"(?i)(?:.+\.)?liblib\.(?:art|ai)")
_SAFE = "/%:@!$&'()*+,;=~-._"  # characters of a path that stay as they are
_LONGEST_SHOWN = 120
_AIR = re.compile(r"(?i)(?:urn:)?(?:air:\w+:\w+:)?civitai:(?P<model>\d{1,18})(?:@(?P<version>\d{1,18}))?(?:\.\w+)?")
_SCHEME = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+):")
_NUMBER = re.compile(r"\d{1,18}")
_CIVITAI_PATHS = (
    re.compile(r"/(?:api/v1/)?models/(?P<model>\d{1,18})(?:/.*)?"),
    re.compile(r"/(?:api/v1/|api/download/)?(?:model-versions|models)/(?P<version>\d{1,18})(?:/.*)?"),
)
_HUB_KINDS = ("datasets", "spaces")
_HUB_FILE = re.compile(r"/(?P<repo>[\w.-]+/[\w.-]+)/(?:resolve|blob|raw)/(?P<revision>[^/]+)/(?P<path>.+)", re.ASCII)
_HUB_REPOSITORY = re.compile(r"/(?:api/models/)?(?P<repo>[\w.-]+/[\w.-]+)(?:/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?|/.*)?", re.ASCII)
_HUB_PAGES = ("api", "blog", "collections", "docs", "join", "login", "papers", "posts", "settings")
_GITHUB_FILE = re.compile(r"/[^/]+/[^/]+/(?P<blob>blob)/.+")


@dataclass(frozen=True)
class Sites:
    """Where the two sites are asked whose pages are understood; other places than the usual ones are for mirrors.

    Attributes:
        civitai, hub: addresses without a slash at their end.
    """

    civitai: str = "https://civitai.com"
    hub: str = "https://huggingface.co"

    @classmethod
    def from_environment(cls) -> Sites:
        """The usual ones, or what `CIVITAI_ENDPOINT` and `HF_ENDPOINT` say."""
        given = {"civitai": os.environ.get("CIVITAI_ENDPOINT"), "hub": os.environ.get("HF_ENDPOINT")}
        return cls(**{site: address.rstrip("/") for site, address in given.items() if address})


@dataclass(frozen=True)
class CivitaiModel:
    """A model on Civitai; without a version the newest one is meant.

    Attributes:
        base: address of the site; some models are on one of its siblings only.
        wanted: which of a version's files, as its download address says: `type`, `format`, `fileId`, …
        token: the API token that was in the address.
    """

    base: str
    model: int | None
    version: int | None
    wanted: dict[str, str] = field(default_factory=dict)
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class HubPlace:
    """A repository on Hugging Face, or one file in it.

    Attributes:
        base: address of the hub.
        repo: `owner/name`, with `datasets/` or `spaces/` before it where it is one.
        path: the file or the folder in it; empty = the whole repository.
        is_file: whether `path` is a file.
    """

    base: str
    repo: str
    revision: str = "main"
    path: str = ""
    is_file: bool = False


@dataclass(frozen=True)
class WebFile:
    """Any other file on the web."""

    address: str


@dataclass(frozen=True)
class LocalFile:
    """A file of this computer."""

    path: Path


Source = CivitaiModel | HubPlace | WebFile | LocalFile


def understand(text: str, sites: Sites, *, files_too: bool = True) -> Source:
    """What an address or a file's path means.

    Args:
        files_too: whether the disk may be asked for a file whose path begins like a known host; without it no disk is touched.

    Raises:
        InstallError: an address that leads to no file, or that cannot be used.
    """
    text = text.strip().strip("\"'<>").strip()
    if not text:
        raise InstallError("Give the address of an embedding, or a file.", setting="address")
    if air := _AIR.fullmatch(text):
        return CivitaiModel(sites.civitai, int(air["model"]), int(air["version"]) if air["version"] else None)
    scheme = _SCHEME.match(text)
    if not scheme:
        path = os.path.expanduser(text)
        if not _begins_with_host(text) or (files_too and os.path.lexists(path)):
            return LocalFile(Path(path))
        text = f"https://{text}"
    elif scheme["scheme"].lower() == "file":
        return LocalFile(Path(url2pathname(urlsplit(text).path)))
    return _on_the_web(_split(text), sites)


def shown(address: str) -> str:
    """An address for messages: without its query, which may hold a token, and not too long."""
    try:
        parts = urlsplit(address)
        text = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{unquote(parts.path)}"
    except ValueError:
        return "this address"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def host_of(address: str) -> str:
    """The host in lower case, without its port; empty where there is none."""
    return (urlsplit(address).hostname or "").rstrip(".")


def origin_of(address: str) -> tuple[str, str, int | None]:
    """Scheme, host and port; equal for addresses of the same server."""
    parts = urlsplit(address)
    usual = {"http": 80, "https": 443}.get(parts.scheme.lower())
    return parts.scheme.lower(), host_of(address), parts.port or usual


def _begins_with_host(text: str) -> bool:
    return text.split("/")[0].lower().removeprefix("www.") in _KNOWN_HOSTS


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InstallError(f"This is no web address ({error}); copy it again.", setting="address") from error
    if parts.scheme.lower() not in ("http", "https"):
        raise InstallError(f"Addresses that begin with {parts.scheme}: are not fetched, only http and https.", setting="address")
    if not host:
        raise InstallError("This address names no host; copy it again.", setting="address")
    if parts.username is not None:
        sentence = "This address holds a user's name; leave it out, or fetch the file with your browser and give the file."
        raise InstallError(sentence, setting="address")
    try:
        host.encode("ascii") if host.isascii() else host.encode("idna")
    except UnicodeError as error:
        raise InstallError(f"This is no web address ({error}); copy it again.", setting="address") from error
    return parts


def _on_the_web(parts: SplitResult, sites: Sites) -> Source:
    host = (parts.hostname or "").removeprefix("www.")
    here = origin_of(urlunsplit(parts))
    if host in CIVITAI_HOSTS or here == origin_of(sites.civitai):
        is_sibling = sites == Sites(hub=sites.hub) and host in CIVITAI_HOSTS[1:]
        return _on_civitai(parts, f"https://{host}" if is_sibling else sites.civitai)
    if host in HUB_HOSTS or here == origin_of(sites.hub):
        return _on_the_hub(parts, sites.hub)
    if host in _HUB_MIRRORS:
        return _on_the_hub(parts, f"https://{host}")
    if _LIBLIB.fullmatch(host) and parts.path.startswith("/modelinfo"):
        sentence = "LiblibAI gives files to its users only: press its download button in your browser, and give the file here."
        raise InstallError(sentence, setting="address")
    path = quote(parts.path, safe=_SAFE)
    if host == "github.com" and (file := _GITHUB_FILE.fullmatch(parts.path)):
        path = quote(f"{parts.path[: file.start('blob')]}raw{parts.path[file.end('blob') :]}", safe=_SAFE)
    netloc = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
    return WebFile(urlunsplit((parts.scheme.lower(), netloc, path, quote(parts.query, safe=_SAFE + "?"), "")))


def _on_civitai(parts: SplitResult, base: str) -> CivitaiModel:
    query = dict(parse_qsl(parts.query))
    token = query.pop("token", "")
    version = parse_qs(parts.query).get("modelVersionId", [""])[0]
    page, file = (pattern.fullmatch(parts.path) for pattern in _CIVITAI_PATHS)
    if page and not parts.path.startswith("/api/download/"):
        return CivitaiModel(base, int(page["model"]), int(version) if _NUMBER.fullmatch(version) else None, token=token)
    if file:
        return CivitaiModel(base, None, int(file["version"]), query, token)
    sentence = (
        "This page of Civitai is not a model's page; give the address of the embedding's page, such as https://civitai.com/models/123."
    )
    raise InstallError(sentence, setting="address")


def _on_the_hub(parts: SplitResult, base: str) -> HubPlace:
    path, kind = parts.path.rstrip("/"), ""  # a revision such as `refs%2Fpr%2F1` is one part of the path
    first = path.split("/")[1] if path.count("/") else ""
    if first in _HUB_KINDS:
        path, kind = path[len(first) + 1 :], f"{first}/"
    if file := _HUB_FILE.fullmatch(path):
        return HubPlace(base, kind + file["repo"], unquote(file["revision"]), unquote(file["path"]), is_file=True)
    repository = _HUB_REPOSITORY.fullmatch(path)
    if not repository or (first in _HUB_PAGES and not path.startswith("/api/models/")):
        sentence = "This page of Hugging Face is not a repository's page; give one such as https://huggingface.co/owner/name."
        raise InstallError(sentence, setting="address")
    return HubPlace(base, kind + repository["repo"], unquote(repository["revision"] or "main"), unquote(repository["path"] or ""))


def hub_file_address(place: HubPlace, path: str) -> str:
    """Where the hub gives the file `path` of a repository."""
    return f"{place.base}/{quote(place.repo)}/resolve/{quote(place.revision, safe='')}/{quote(path)}"


def civitai_download_address(base: str, version: int) -> str:
    """Where Civitai gives the file of a version of a model."""
    return f"{base}/api/download/models/{version}"
