"""Downloads a model folder from the Hugging Face hub, only on the user's request."""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from textual_inversion.errors import ConfigError
from textual_inversion.files import replace_file

Progress = Callable[[int, int, str], None]

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_BLOCK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
#: Files that are taken of a repository; the last one comes last, and shows that all others are there.
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
    """Folder of a model that `download` has brought; None when there is none or it is not complete."""
    folder = _folder(name, models)
    return folder if folder and (folder / _FILES[-1]).is_file() else None


def download(name: str, models: Path, progress: Progress | None = None, should_stop: Callable[[], bool] | None = None) -> Path:
    """Bring the model `name` (such as `Salesforce/blip-image-captioning-base`) and return its folder.

    Args:
        models: folder of all models; the model gets one of its own in it.
        progress: called with (bytes done, bytes in all, file name) after each mebibyte.
        should_stop: asked as often; files that are complete stay, and the next call goes on from there.

    Raises:
        ConfigError: no such model, no way to the hub, the disk is full, or it was stopped.
    """
    folder = _folder(name, models)
    if folder is None:
        sentence = f"{name!r} is neither a folder nor a name on the Hugging Face hub, such as owner/model; correct it."
        raise ConfigError(sentence, setting="blip_model")
    try:
        sizes = _sizes(name)
        folder.mkdir(parents=True, exist_ok=True)
        total, before = sum(sizes.values()), 0
        for file in [file for file in _FILES if file in sizes]:

            def report(done: int, file: str = file, before: int = before) -> None:
                if should_stop and should_stop():
                    raise ConfigError(f"The download of {name} was stopped; start it again to go on.", setting="blip_model")
                if progress:
                    progress(before + done, total, file)

            _fetch(name, folder / file, sizes[file], report)
            before += sizes[file]
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConfigError(f"{name} could not be downloaded: {_reason(error)}.", setting="blip_model") from error
    return folder


def _folder(name: str, models: Path) -> Path | None:
    return models / name.replace("/", "--") if _NAME.fullmatch(name) and ".." not in name else None


def _sizes(name: str) -> dict[str, int]:
    """Wanted file -> bytes."""
    with _open(f"api/models/{name}?blobs=true") as answer:
        files = json.load(answer)["siblings"]
    sizes = {str(file["rfilename"]): int(file.get("size") or 0) for file in files if file["rfilename"] in _FILES}
    if missing := [file for file in _NEEDED if file not in sizes]:
        raise ValueError(f"it has no {' and no '.join(missing)}, which a caption model needs")
    return sizes


def _fetch(name: str, target: Path, size: int, report: Callable[[int], None]) -> None:
    """Write one file whole or not at all, unless it is there; `report` is called with its bytes so far, and its error ends the download."""
    if target.is_file() and target.stat().st_size == size:
        report(size)
        return

    def write(file: BinaryIO) -> None:
        with _open(f"{name}/resolve/main/{target.name}") as answer:
            while block := answer.read(_BLOCK):
                file.write(block)
                report(file.tell())
        if size and file.tell() != size:
            raise ValueError(f"{target.name} ended after {file.tell()} of {size} bytes; try again")

    replace_file(target, write, durable=False, fixed_name=True, follow_links=False)


def _open(path: str) -> http.client.HTTPResponse:
    address = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{path}"
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"{address} is no web address")
    return urllib.request.urlopen(urllib.request.Request(address, headers={"User-Agent": "textual-inversion"}), timeout=_TIMEOUT)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return "there is no such model, or it is not public" if error.code in (401, 403, 404) else f"the hub answered {error.code}"
    if isinstance(error, urllib.error.URLError):
        return f"the hub cannot be reached ({error.reason}); give the model's folder instead"
    return str(error) or type(error).__name__
