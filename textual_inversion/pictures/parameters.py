"""The text in a picture that says how it was made, where WebUIs write it and look for it, and the settings in such a text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.errors import DatasetError, TextualInversionError
from textual_inversion.files import open_regular
from textual_inversion.settings.generation import SAMPLERS, GenerationSettings
from textual_inversion.settings.schema import settings_of

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

_CHUNK = "parameters"
_NEGATIVE = "Negative prompt:"
_FACTS = re.compile(r"Steps: \d+, \w")  # begins the last line
_FACT = re.compile(r'\s*([A-Z][\w \-/]*):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")
_NUMBERS = {"Steps": "steps", "CFG scale": "cfg_scale", "Seed": "seed", "Clip skip": "clip_skip"}
_USER_COMMENT, _EXIF = 0x9286, 0x8769
_LONGEST = 100_000  # letters


def with_parameters(picture: Image.Image) -> PngInfo:
    """The chunk for `Image.save(pnginfo=…)`; empty where nothing is known of the picture."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    if _CHUNK in picture.info:
        chunks.add_text(_CHUNK, str(picture.info[_CHUNK]))  # as UTF-8 where Latin-1 does not do
    return chunks


def parameters_in(path: Path) -> str:
    """The text that says how the picture in a file was made.

    Raises:
        DatasetError: the file is no picture, or there is no such text in it.
    """
    from PIL import Image

    try:
        with open_regular(path) as file, Image.open(file) as picture:
            text = picture.info.get(_CHUNK) or _comment(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path.name} is no picture that can be read.", path=path) from error
    if not isinstance(text, str) or not text.strip():
        raise DatasetError(f"{path.name} does not say how it was made; programs that edit pictures remove that.", path=path)
    return text[:_LONGEST]


def _comment(picture: Image.Image) -> str:
    """The comment in EXIF, where WebUIs write the text of JPEG and WebP files; empty where there is none."""
    comment = picture.getexif().get_ifd(_EXIF).get(_USER_COMMENT, b"")
    if not isinstance(comment, bytes):
        return str(comment)
    kind, text = comment[:8], comment[8:]
    return text.decode("utf-16-be" if kind.startswith(b"UNICODE") else "utf-8", "replace").strip("\0")


def settings_in(text: str) -> Mapping[str, Any]:
    """The fields of `GenerationSettings` in the text of a picture, as far as it has them and they can be used here."""
    lines = text.strip().splitlines()
    place = next((place for place in range(len(lines) - 1, -1, -1) if _FACTS.match(lines[place].strip())), len(lines))
    prompt, _, negative = "\n".join(lines[:place]).partition(_NEGATIVE)
    found: dict[str, Any] = {"prompt": prompt.strip(), "negative_prompt": negative.strip()}
    facts = {name: value.strip().strip('"') for name, value in _FACT.findall(" ".join(lines[place:]))}
    found |= {field: facts[name] for name, field in _NUMBERS.items() if name in facts}
    if size := _SIZE.fullmatch(facts.get("Size", "")):
        found |= {"width": size[1], "height": size[2]}
    if sampler := _sampler(facts):
        found["sampler"] = sampler
    return {name: value for name, value in found.items() if _is_usable(name, value)}


def _sampler(facts: Mapping[str, str]) -> str:
    """The sampler by its name here; newer WebUIs write its schedule apart. Empty where there is no such sampler here."""
    known = {name.lower(): name for name in SAMPLERS}
    alone = facts.get("Sampler", "").lower()
    return known.get(f"{alone} {facts.get('Schedule type', '')}".lower(), known.get(alone, ""))


def _is_usable(name: str, value: str) -> bool:
    """Whether the setting may have this value."""
    setting = next(each for each in settings_of(GenerationSettings) if each.name == name)
    try:
        setting.check(setting.clean(value))
    except TextualInversionError:
        return False
    return True
