"""Keeps what a site says of an embedding beside it: Civitai's record, A1111's metadata, a picture. Never replaces a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from textual_inversion.errors import InstallError
from textual_inversion.files import read_regular, replace_file
from textual_inversion.install.sites import Offer
from textual_inversion.install.web import Web
from textual_inversion.library.sidecars import PREVIEW_ENDINGS, TEXT_ENDINGS

_MOST_PICTURE_BYTES = 32 * 2**20
_MOST_PIXELS = 64 * 2**20
_PICTURES = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "AVIF")  # Pillow's other readers include one that starts a program
_PREVIEW_SIDE = 768  # pixels
_PICTURE_TRIES = 3
_KEPT_SIDECAR = 2**20  # bytes
_FAMILIES = ("SD1", "SD2", "SDXL")  # which A1111 calls the same


def keep_facts(target: Path, offer: Offer, family: str, sha256: str) -> list[Path]:
    """Write `X.civitai.info`, where the site is Civitai, and A1111's `X.json`; returns the files that are new.

    Args:
        target: the embedding's file `X.…`.
        family: as `family_of` has it.
    """
    written = []
    if offer.record is not None:
        written += _new_file(target.with_name(f"{target.stem}.civitai.info"), _as_json(offer.record))
    notes = [f"From {offer.page}." if offer.page else "", f"Made for {offer.base_model}." if offer.base_model else ""]
    metadata: dict[str, Any] = {
        "description": offer.title,
        **({"sd version": family} if family in _FAMILIES else {}),
        "activation text": ", ".join(offer.words),
        "preferred weight": 0,
        "notes": " ".join(note for note in notes if note),
        "sha256": sha256,
    }
    return written + _new_file(target.with_name(f"{target.stem}.json"), _as_json(metadata))


def keep_picture(web: Web, target: Path, offer: Offer) -> tuple[list[Path], str]:
    """Write `X.preview.png` from the first picture that can be had.

    Returns:
        The new file, and why there is none; both empty where the site has no picture, or one is there already.
    """
    from PIL import UnidentifiedImageError

    if not offer.pictures or any(os.path.lexists(target.with_name(target.stem + ending)) for ending in PREVIEW_ENDINGS):
        return [], ""
    why = ""
    for address in offer.pictures[:_PICTURE_TRIES]:
        try:
            data = _as_png(web.small(address, _MOST_PICTURE_BYTES))
        except (InstallError, OSError, ValueError, SyntaxError) as error:
            why = (
                f"Its picture was not kept: {'it is no picture that is read here.' if isinstance(error, UnidentifiedImageError) else error}"
            )
            continue
        return _new_file(target.with_name(f"{target.stem}.preview.png"), data), ""
    return [], why


def copy_sidecars(source: Path, target: Path) -> list[Path]:
    """Copy the notes, the metadata and the preview beside a file of this computer; returns the files that are new."""
    written = []
    for ending in (*TEXT_ENDINGS, *(ending for ending in PREVIEW_ENDINGS if "preview" in ending)):
        try:
            is_text = ending in TEXT_ENDINGS
            data = read_regular(source.with_name(source.stem + ending), _KEPT_SIDECAR if is_text else _MOST_PICTURE_BYTES)
        except (OSError, ValueError):
            continue
        written += _new_file(target.with_name(target.stem + ending), data)
    return written


def _new_file(path: Path, data: bytes) -> list[Path]:
    """Write a file unless one is there, or the disk does not let us: the embedding matters more than what is said of it."""
    try:
        replace_file(path, data, overwrite=False, durable=False)
    except OSError:
        return []
    return [path]


def _as_json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, ensure_ascii=False, indent=4).encode("utf-8", "replace")


def _as_png(data: bytes) -> bytes:
    """A picture from the web as a small PNG that holds pixels only."""
    from PIL import Image, ImageOps

    Image.init()
    with Image.open(BytesIO(data), formats=[name for name in _PICTURES if name in Image.OPEN]) as opened:
        if opened.width * opened.height > _MOST_PIXELS:
            raise ValueError("it has too many pixels")
        opened.draft("RGB", (_PREVIEW_SIDE, _PREVIEW_SIDE))
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    picture.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    bare = Image.new("RGB", picture.size)
    bare.paste(picture)
    file = BytesIO()
    bare.save(file, "PNG")
    return file.getvalue()
