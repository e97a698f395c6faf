"""Brings a model folder from the Hugging Face hub, when a person has asked for it. Knows nothing of what is in the files."""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from textual_inversion.errors import ConfigError

Progress = Callable[[int, int, str], None]

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_BLOCK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
#: What is taken of a repository; the last one is the sign that all others are there.
_FILES = (
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "model.safetensors",
    "config.json",
)
_NEEDED = ("model.safetensors", "config.json")


def models_folder() -> Path:
    """Where downloaded models lie: `textual-inversion/models` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "textual-inversion" / "models"


def downloaded(name: str, models: Path) -> Path | None:
    """Folder of a model that `download` has brought; None when it has not, or not to the end."""
    folder = _folder(name, models)
    return folder if folder and (folder / _FILES[-1]).is_file() else None


def download(name: str, models: Path, progress: Progress | None = None, should_stop: Callable[[], bool] | None = None) -> Path:
    """Bring the model `name` (such as `Salesforce/blip-image-captioning-base`) and return its folder.

    Args:
        models: folder of all models; the model gets one of its own in it.
        progress: told (bytes done, bytes in all, file name) after each mebibyte.
        should_stop: asked as often; files that are complete stay, and the next call goes on from there.

    Raises:
        ConfigError: no such model, no way to the hub, the disk is full, or it was stopped.
    """
    folder = _folder(name, models)
    if folder is None:
        raise ConfigError(f"{name!r} is neither a folder nor a name on the Hugging Face hub, such as owner/model; correct it.")
    try:
        sizes = _sizes(name)
        folder.mkdir(parents=True, exist_ok=True)
        total, before = sum(sizes.values()), 0
        for file in [file for file in _FILES if file in sizes]:
            for done in _bring(name, folder / file, sizes[file], before):
                if should_stop and should_stop():
                    raise ConfigError(f"The download of {name} was stopped; start it again to go on.")
                if progress:
                    progress(done, total, file)
            before += sizes[file]
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConfigError(f"{name} could not be downloaded: {_reason(error)}.") from error
    return folder


def _folder(name: str, models: Path) -> Path | None:
    return models / name.replace("/", "--") if _NAME.fullmatch(name) and ".." not in name else None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _open(address: str) -> http.client.HTTPResponse:
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"{address} is no web address")
    return urllib.request.urlopen(urllib.request.Request(address, headers={"User-Agent": "textual-inversion"}), timeout=_TIMEOUT)


def _sizes(name: str) -> dict[str, int]:
    """Wanted file -> bytes."""
    with _open(f"{_endpoint()}/api/models/{name}?blobs=true") as answer:
        told = json.load(answer)
    found = {str(item["rfilename"]): int(item.get("size") or 0) for item in told["siblings"] if item["rfilename"] in _FILES}
    if missing := [file for file in _NEEDED if file not in found]:
        raise ValueError(f"it has no {' and no '.join(missing)}, which a caption model needs")
    return found


def _bring(name: str, target: Path, size: int, done: int) -> Iterator[int]:
    """Write one file whole or not at all; yields the bytes done so far, all files counted."""
    if target.is_file() and target.stat().st_size == size:
        yield done + size
        return
    part = target.with_name(f".{target.name}.part")
    try:
        with _open(f"{_endpoint()}/{name}/resolve/main/{target.name}") as answer, part.open("wb") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                yield done + file.tell()
        if size and part.stat().st_size != size:
            raise ValueError(f"{target.name} ended after {part.stat().st_size} of {size} bytes; try again")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return "there is no such model, or it is not public" if error.code in (401, 403, 404) else f"the hub answered {error.code}"
    if isinstance(error, urllib.error.URLError):
        return f"the hub cannot be reached ({error.reason}); give the model's folder instead"
    return str(error) or type(error).__name__
