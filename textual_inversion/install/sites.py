"""Asks Civitai and Hugging Face what an address of theirs means: which file, its hash, its words and its pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from textual_inversion.errors import InstallError
from textual_inversion.formats import PICTURE_ENDINGS, READ_ENDINGS
from textual_inversion.install.addresses import CivitaiModel, HubPlace, WebFile, civitai_download_address, hub_file_address, shown
from textual_inversion.install.download import MOST_BYTES
from textual_inversion.install.web import Web
from textual_inversion.text import counted

_EMBEDDING = "TextualInversion"  # Civitai's type
_MOST_NAMED = 6
_MOST_WORDS = 50
_HARMLESS = (0, 1, False, None, "None")  # Civitai's levels of pictures that everybody may see
_WEIGHTS = tuple(ending for ending in READ_ENDINGS if ending not in PICTURE_ENDINGS)
_MAIN = ("learned_embeds.safetensors", "learned_embeds.bin")
_OTHERS = ("optimizer", "scheduler", "training_args", "random_states", "pytorch_lora_weights", "scaler", "rng_state")
_TOKEN_FILE = "token_identifier.txt"  # of the Stable Diffusion concepts library


@dataclass(frozen=True)
class Offer:
    """A file on the web, and what its site says of it.

    Attributes:
        address: where it is fetched from.
        name: the file's name; empty where only the download tells.
        title: name of the model or the repository.
        hashes: kind (`SHA256`, `AutoV2`) -> hex digits.
        words: the words that its site recommends for prompts.
        base_model: the model that it was made for, in the site's words.
        page: the page for people.
        pictures: addresses of pictures that show it, the best first.
        record: Civitai's record of this version; None for other sites.
        remark: a sentence about the choice; mostly empty.
        typed: whether `address` is what the user gave.
        token: takes the place of the site's own token.
    """

    address: str
    name: str = ""
    title: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    base_model: str = ""
    page: str = ""
    pictures: tuple[str, ...] = ()
    record: Mapping[str, Any] | None = None
    remark: str = ""
    typed: bool = False
    token: str = field(default="", repr=False)


def look_up(web: Web, source: CivitaiModel | HubPlace | WebFile) -> Offer:
    """What an address offers.

    Raises:
        InstallError: the site cannot be asked, has no such thing, or has something else than an embedding there.
    """
    if isinstance(source, CivitaiModel):
        return _on_civitai(web, source)
    if isinstance(source, HubPlace):
        return _on_the_hub(web, source)
    return Offer(source.address, page=shown(source.address), typed=True)


# Civitai


def _on_civitai(web: Web, source: CivitaiModel) -> Offer:
    base = f"{source.base}/api/v1"
    if source.model is not None:
        model = _object(web.json(f"{base}/models/{source.model}", token=source.token))
        version = _version_of(model, source)
        version = {**version, "modelId": source.model, "model": {key: model.get(key) for key in ("name", "type", "nsfw", "description")}}
    else:
        version = _object(web.json(f"{base}/model-versions/{source.version}", token=source.token))
    model = _object(version.get("model"))
    title, kind = _line(model.get("name")), _line(model.get("type"))
    if kind and kind != _EMBEDDING:
        raise InstallError(f"“{title}” is of the type {kind} on Civitai; only embeddings (Textual Inversion) are installed here.")
    file, others = _file_of(version, source.wanted, title)
    number = _whole(version.get("id")) or source.version or 0
    address = _line(file.get("downloadUrl"), 2000)
    if not address.startswith(("http://", "https://")):
        address = civitai_download_address(source.base, number)
    model_id = _whole(version.get("modelId")) or source.model
    return Offer(
        address,
        name=_line(file.get("name")),
        title=title,
        hashes={kind: digest for kind in ("SHA256", "AutoV2") if (digest := _digest(_object(file.get("hashes")).get(kind)))},
        words=_words(version.get("trainedWords")),
        base_model=_line(version.get("baseModel")),
        page=f"{source.base}/models/{model_id}?modelVersionId={number}" if model_id else "",
        pictures=_pictures(version.get("images")),
        record=version,
        remark=f"It comes with {', '.join(others)}, which can be installed from its page." if others else "",
        token=source.token if web.site_of(address) == "civitai" else "",
    )


def _version_of(model: Mapping[str, Any], source: CivitaiModel) -> dict[str, Any]:
    versions = [_object(version) for version in _list(model.get("modelVersions"))]
    wanted = [version for version in versions if source.version in (None, _whole(version.get("id")))]
    if not wanted:
        raise InstallError(f"“{_line(model.get('name'))}” on Civitai has no version {source.version or ''}".rstrip() + ".")
    return wanted[0]


def _file_of(version: Mapping[str, Any], wanted: Mapping[str, str], title: str) -> tuple[dict[str, Any], list[str]]:
    """The file of a version, and the names of other embeddings in it."""
    files = [_object(file) for file in _list(version.get("files"))]
    fitting = [file for file in files if _line(file.get("name")).lower().endswith(READ_ENDINGS)]
    if not fitting:
        names = ", ".join(_line(file.get("name")) for file in files[:_MOST_NAMED]) or "no file"
        raise InstallError(f"“{title}” on Civitai has no embedding file, but {names}; fetch that with your browser and unpack it.")

    def rank(file: Mapping[str, Any]) -> tuple[bool, ...]:
        facts = {**_object(file.get("metadata")), "type": file.get("type"), "fileId": file.get("id")}
        asked = all(str(facts.get(key, value)).lower() == value.lower() for key, value in wanted.items())
        return not asked, not file.get("primary"), not _line(file.get("name")).lower().endswith(".safetensors")

    best = min(fitting, key=rank)
    stem = PurePosixPath(_line(best.get("name"))).stem
    others = [_line(file.get("name")) for file in fitting if PurePosixPath(_line(file.get("name"))).stem != stem]
    return best, others[:_MOST_NAMED]


def _pictures(images: object) -> tuple[str, ...]:
    """Addresses of pictures that everybody may see."""
    listed = [_object(image) for image in _list(images)]
    fitting = [image for image in listed if image.get("type", "image") == "image" and _is_harmless(image)]
    return tuple(address for image in fitting if (address := _line(image.get("url"), 2000)).startswith(("http://", "https://")))


def _is_harmless(image: Mapping[str, Any]) -> bool:
    return image.get("nsfwLevel", image.get("nsfw")) in _HARMLESS


# Hugging Face


def _on_the_hub(web: Web, place: HubPlace) -> Offer:
    facts = _repository(web, place)
    files = {_line(_object(file).get("rfilename"), 1000): _object(file) for file in _list(facts.get("siblings"))}
    path = place.path if place.is_file else _embedding_in(place, files)
    name = place.repo.rpartition("/")[2]
    digest = _digest(_object(_object(files.get(path)).get("lfs")).get("sha256"))
    pictures = sorted(file for file in files if file.lower().endswith((".png", ".jpg", ".jpeg", ".webp")) and file != path)
    base = _object(facts.get("cardData")).get("base_model")
    return Offer(
        hub_file_address(place, path),
        name=PurePosixPath(path).name,
        title=name,
        hashes={"SHA256": digest} if digest else {},
        words=_token_of(web, place) if _TOKEN_FILE in files else (),
        base_model=_line(base[0] if isinstance(base, list) and base else base),
        page=f"{place.base}/{place.repo}",
        pictures=tuple(hub_file_address(place, file) for file in pictures[:1]),
    )


def _repository(web: Web, place: HubPlace) -> dict[str, Any]:
    """What the hub says of a repository; nothing where it cannot be asked about one file."""
    prefix = place.repo if place.repo.count("/") > 1 else f"models/{place.repo}"
    try:
        return _object(web.json(f"{place.base}/api/{prefix}/revision/{quote(place.revision, safe='')}?blobs=true"))
    except InstallError:
        if not place.is_file:
            raise
        return {}


def _embedding_in(place: HubPlace, files: Mapping[str, Mapping[str, Any]]) -> str:
    """The file of a repository that holds its embedding."""
    folder = f"{place.path.rstrip('/')}/" if place.path else ""
    fitting = [path for path, facts in files.items() if path.startswith(folder) and _may_be_embedding(path, facts)]
    main = [f"{folder}{name}" for name in _MAIN if f"{folder}{name}" in fitting]
    if main and f"{folder}learned_embeds_2.safetensors" not in fitting:
        return main[0]
    if len(fitting) == 1:
        return fitting[0]
    where = f"{place.repo} on Hugging Face"
    if not fitting:
        raise InstallError(f"{where} holds no file that could be an embedding; give the address of a file.")
    more = f" and {len(fitting) - _MOST_NAMED} more" if len(fitting) > _MOST_NAMED else ""
    names = f"{', '.join(fitting[:_MOST_NAMED])}{more}"
    advice = f"give the address of one of them, such as {hub_file_address(place, fitting[0])}"
    raise InstallError(f"{where} holds {counted(len(fitting), 'file')} that could be embeddings ({names}); {advice}.")


def _may_be_embedding(path: str, facts: Mapping[str, Any]) -> bool:
    name = PurePosixPath(path).name.lower()
    small = (_whole(facts.get("size")) or 0) <= MOST_BYTES
    return name.endswith(_WEIGHTS) and small and not name.startswith(_OTHERS)


def _token_of(web: Web, place: HubPlace) -> tuple[str, ...]:
    try:
        word = web.small(hub_file_address(place, _TOKEN_FILE), 2**12).decode("utf-8", "replace")
    except InstallError:
        return ()
    return _words([word])


# values of answers, which may be anything


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _line(value: object, most: int = 300) -> str:
    return " ".join(value.split())[:most] if isinstance(value, str) else ""


def _digest(value: object) -> str:
    """8 to 64 hex digits; empty where a site gives something else."""
    digits = _line(value)
    return digits if re.fullmatch(r"[0-9a-fA-F]{8,64}", digits) else ""


def _words(value: object) -> tuple[str, ...]:
    return tuple(word for each in _list(value)[:_MOST_WORDS] if (word := _line(each).strip(", ")))
