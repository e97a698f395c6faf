"""The layout of embedding pictures: A1111's dict, or `clip_l` and `clip_g` for SDXL.

For SDXL the dict holds only the two tensors, because A1111 treats every value of this dict as a tensor. The name and the provenance are
then in the metadata only.
"""

from __future__ import annotations

import base64
import json
from dataclasses import fields, replace
from io import BytesIO
from typing import TYPE_CHECKING

import numpy

from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.picture_data import hide, tree_to_json
from textual_inversion.formats.containers.picture_file import CHUNK, DATA, EMBEDDING_KEYWORD, METADATA_KEYWORD
from textual_inversion.formats.containers.tensors import Contents
from textual_inversion.formats.layout import Keys, Layout, Parsed, as_text, as_vectors, metadata_of, provenance_in
from textual_inversion.formats.layouts import a1111_pt

if TYPE_CHECKING:
    from PIL import Image

_SDXL = ("clip_l", "clip_g")


def read(contents: Contents) -> list[Parsed]:
    """Read the vectors, and their facts from the dict and the metadata.

    Raises:
        EmbeddingError: the dict holds several words, or values that are not vectors.
    """
    if a1111_pt.STRING_TO_PARAM.fit(contents.tree):
        (parsed,) = a1111_pt.read(contents)
    else:
        vectors = {key: as_vectors(contents.tree[key], key) for key in _SDXL}
        parsed = Parsed(vectors, as_text(contents.tree.get("name")), a1111_pt.provenance_of(contents.tree))
    origin, metadata = parsed.provenance, provenance_in(contents.metadata)
    unknown = [field.name for field in fields(origin) if getattr(origin, field.name) is None]
    origin = replace(origin, **{name: getattr(metadata, name) for name in unknown})
    return [replace(parsed, stored_name=parsed.stored_name or as_text(contents.metadata.get("ti_name")), provenance=origin)]


def write(embedding: Embedding) -> bytes:
    """A PNG file that carries `embedding` in a text and in its pixels, on a drawn background. The same input gives the same bytes.

    Raises:
        EmbeddingError: several text encoders that are not SDXL's two, or too many vectors for a picture.
    """
    return draw_card(embedding)


def draw_card(embedding: Embedding, picture: Image.Image | None = None) -> bytes:
    """A PNG file that carries `embedding` in a text and in its pixels, and shows its name and facts.

    Args:
        embedding: for one text encoder, or for SDXL's two.
        picture: the card's background, such as a training preview, scaled to 384 to 1024 pixels a side. None draws a pattern from
            the vectors.

    Raises:
        EmbeddingError: as `write`.
    """
    from PIL import Image, PngImagePlugin

    from textual_inversion.formats.layouts.picture_card import draw_face

    vectors = embedding.vectors
    if len(vectors) != 1 and set(vectors) != set(_SDXL):
        raise EmbeddingError(f"it has vectors for {', '.join(sorted(vectors))}; a picture holds one text encoder, or clip_l and clip_g.")
    tree = a1111_pt.tree_of(embedding) if len(vectors) == 1 else {key: vectors[key] for key in _SDXL}
    data = tree_to_json(tree)
    sizes = next(iter(vectors.values()))[0].abs().double().numpy()  # magnitudes of the first vector's values
    pixels = hide(numpy.asarray(draw_face(embedding, picture)), data, sizes / max(sizes.max(), 1e-300))
    texts = PngImagePlugin.PngInfo()
    texts.add_text(EMBEDDING_KEYWORD, base64.b64encode(data).decode())
    texts.add_text(METADATA_KEYWORD, json.dumps(metadata_of(embedding)))
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()


_KEYS = (a1111_pt.STRING_TO_PARAM, Keys(has=dict.fromkeys(_SDXL, object)))
_BEFORE = ("original .pt", "text encoders")
IN_CHUNK = Layout("PNG chunk", read, _KEYS, containers=(CHUNK,), before=_BEFORE, write=write, endings=(".png",))
IN_PIXELS = Layout("hidden picture data", read, _KEYS, containers=(DATA,), before=_BEFORE)
