"""Gives a fetched file its name in the folder of embeddings: read first, never over another file."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from textual_inversion import formats
from textual_inversion.embedding import clean_name
from textual_inversion.errors import EmbeddingError, InstallError, UnsafeFileError
from textual_inversion.files import open_regular, os_error_text, replace_file
from textual_inversion.library.folders import walk
from textual_inversion.prompts.names import words_in_prompts

#: Names that programs give every embedding, so that they say nothing.
_GENERIC = re.compile(r"(?i)(?:learned_embeds?|embeddings?|model|pytorch_model|download|file|textual_inversion|ti|\d+)?(?:[-_ .]?\d*)")
_SHORT_HASH = 8  # hex digits at least, as in AutoV1 and A1111's old hashes


def read_safely(path: Path, name: str) -> list[formats.FileInfo]:
    """Read every embedding in the file at `path`, with its vectors, by the reader that runs no code.

    Args:
        name: the file's name in messages.

    Returns:
        The facts about those that prompts can use, at least one.

    Raises:
        InstallError: it holds code, no embedding, or none that prompts can use.
    """
    try:
        infos = formats.describe_all(path)
        usable = [info for info in infos if not info.unusable]
        for info in usable:
            formats.load(path, word=info.word)
    except UnsafeFileError as error:
        raise InstallError(f"{name} tries to run code, and was not installed: {error.reason}") from error
    except EmbeddingError as error:
        raise InstallError(f"{name} was not installed: {error.reason}") from error
    if not usable:
        raise InstallError(f"{name} was not installed: {infos[0].unusable}.")
    return usable


def check_digest(name: str, sha256: str, said: Mapping[str, str]) -> list[str]:
    """The kinds of `said` that agree with the file's sha256.

    Args:
        said: kind -> hex digits: a whole SHA256, or its beginning, as Civitai's AutoV2 and A1111's hashes are.

    Raises:
        InstallError: one of them is another file's.
    """
    for kind, digits in said.items():
        wanted = digits.lower().removeprefix("0x").removeprefix("sha256:")
        if not re.fullmatch(rf"[0-9a-f]{{{_SHORT_HASH},64}}", wanted):
            raise InstallError(f"{digits!r} is no hash; give {_SHORT_HASH} to 64 hex digits of the file's SHA256.", setting="digest")
        if not sha256.startswith(wanted):
            raise InstallError(
                f"{name} was not installed: its {kind} is {sha256[: len(wanted)]}, not {wanted} as expected. "
                "It was damaged or exchanged on the way, or its site has replaced it; try again, and ask its author if this stays so."
            )
    return list(said)


def name_for(wanted: str, stem: str, title: str) -> str:
    """The name that prompts will use.

    Args:
        wanted: the user's choice, which can be a name; empty = none.
        stem: the file's name without ending.
        title: the name of its model or repository, which counts where the file's name says nothing.
    """
    if wanted:
        return wanted
    return clean_name(title if title and _GENERIC.fullmatch(stem) else stem)


def ending_for(path: Path, name: str) -> str:
    """The ending by which every program reads the file as what its bytes are."""
    with formats.open_file(path) as source:
        if formats.is_safetensors(source):
            return ".safetensors"
        torch = formats.is_torch_file(source)
    ending = os.path.splitext(name)[1].lower()
    if torch:
        return ending if ending in formats.READ_ENDINGS and ending not in (".safetensors", *formats.PICTURE_ENDINGS) else ".pt"
    return ending if ending in formats.PICTURE_ENDINGS else ".png"


def same_file(folder: Path, sha256: str, size: int) -> Path | None:
    """The embedding file below `folder` with this content; None where there is none."""
    for path, own_size in _files(folder):
        if own_size == size:
            try:
                if formats.file_sha256(path) == sha256:
                    return path
            except EmbeddingError:
                continue
    return None


def check_free(folder: Path, name: str) -> None:
    """Raise `InstallError` where prompts would take another embedding below `folder` for `name`."""
    wanted = words_in_prompts(name)
    for path, _ in _files(folder):
        if words_in_prompts(clean_name(path.stem)) == wanted or path.stem.casefold() == name.casefold():
            sentence = f"There is an embedding {path.name} in {path.parent} already, which is another; choose another name (--name)."
            raise InstallError(sentence, path=path, setting="name")


def put(source: Path, target: Path) -> None:
    """Copy a file that was read and judged; a file that is there stays.

    Raises:
        InstallError: there is one of that name, or it cannot be written.
    """

    def write(file: BinaryIO) -> None:
        with open_regular(source) as data:
            shutil.copyfileobj(data, file)

    try:
        replace_file(target, write, overwrite=False)
    except FileExistsError as error:
        raise InstallError(f"{target} exists; choose another name (--name).", path=target, setting="name") from error
    except OSError as error:
        raise InstallError(f"{target} was not written: {os_error_text(error)}.", path=target) from error


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Files below `folder` that may hold embeddings, with their sizes."""
    for listing in walk(str(folder), set()):
        for name, stamp in listing.files.items():
            yield Path(listing.path, name), stamp.size if stamp else -1
