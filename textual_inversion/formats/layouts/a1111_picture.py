"""A1111's dict, or SDXL's `clip_l` and `clip_g`, carried by a picture. Knows nothing of files and of how pictures are drawn.

SDXL's dict has the two tensors alone, because A1111 takes every value in it for one; so all else is told by the metadata.
"""

from __future__ import annotations

import base64
import json
from dataclasses import fields, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy

from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.picture_data import hide
from textual_inversion.formats.containers.picture_file import CHUNK, DATA, EMBEDDING_KEYWORD, METADATA_KEYWORD
from textual_inversion.formats.containers.picture_json import tree_to_json
from textual_inversion.formats.layout import Contents, Layout, Parsed, as_text, as_vectors
from textual_inversion.formats.layouts import a1111_pt
from textual_inversion.formats.layouts.metadata import metadata_of, provenance_in
from textual_inversion.formats.layouts.picture_card import draw_face

if TYPE_CHECKING:
    from PIL import Image

_SDXL = ("clip_l", "clip_g")


def detect_chunk(contents: Contents) -> bool:
    """Whether a PNG text holds A1111's dict or SDXL's."""
    return contents.container == CHUNK and _known(contents)


def detect_data(contents: Contents) -> bool:
    """Whether pixels hold A1111's dict or SDXL's."""
    return contents.container == DATA and _known(contents)


def read(contents: Contents) -> list[Parsed]:
    """The vectors, with what the dict and the metadata say of them.

    Raises:
        EmbeddingError: several words, or vectors that are none.
    """
    if a1111_pt.detect(contents):
        found = a1111_pt.read(contents)
    else:
        tree = contents.tree
        vectors = {key: as_vectors(tree[key], key) for key in _SDXL}
        found = [Parsed(vectors, as_text(tree.get("name")), a1111_pt.provenance_of(tree))]
    stored_name = as_text(contents.metadata.get("ti_name"))
    return [
        replace(parsed, stored_name=parsed.stored_name or stored_name, provenance=_filled(parsed.provenance, contents)) for parsed in found
    ]


def write(embedding: Embedding) -> bytes:
    """A PNG file that carries `embedding` in a text and in its pixels, on a drawn ground; the same input gives the same bytes.

    Raises:
        EmbeddingError: vectors for several text encoders that are not SDXL's, or too many for a picture.
    """
    return draw_card(embedding)


def draw_card(embedding: Embedding, picture: Image.Image | None = None) -> bytes:
    """A PNG file that carries `embedding` in a text and in its pixels, and says what it is.

    Args:
        embedding: for one text encoder, or for SDXL's two.
        picture: what the card shows, such as a preview of training; it is brought to 384 to 1024 pixels a side. None draws a
            pattern that the vectors determine.

    Raises:
        EmbeddingError: as `write`.
    """
    from PIL import Image, PngImagePlugin

    data = tree_to_json(_tree(embedding))
    face = numpy.asarray(draw_face(embedding, picture))
    pixels = hide(face, data, _shades(embedding))
    texts = PngImagePlugin.PngInfo()
    texts.add_text(EMBEDDING_KEYWORD, base64.b64encode(data).decode())
    texts.add_text(METADATA_KEYWORD, json.dumps(metadata_of(embedding)))
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()


def _known(contents: Contents) -> bool:
    return a1111_pt.detect(contents) or (isinstance(contents.tree, dict) and all(key in contents.tree for key in _SDXL))


def _filled(origin: Provenance, contents: Contents) -> Provenance:
    """`origin`, with what it does not know from the metadata."""
    more = provenance_in(contents.metadata)
    return replace(origin, **{field.name: getattr(more, field.name) for field in fields(origin) if getattr(origin, field.name) is None})


def _tree(embedding: Embedding) -> dict[str, Any]:
    vectors = embedding.vectors
    if len(vectors) == 1:
        return a1111_pt.tree_of(embedding)
    if set(vectors) != set(_SDXL):
        raise EmbeddingError(f"it has vectors for {', '.join(sorted(vectors))}; a picture holds one text encoder, or clip_l and clip_g.")
    return {key: vectors[key] for key in _SDXL}


def _shades(embedding: Embedding) -> numpy.ndarray:
    """The sizes of the first vector's values, from 0 to 1."""
    row = next(iter(embedding.vectors.values()))[0].abs().double().numpy()
    return row / max(row.max(), 1e-300)


CHUNK_LAYOUT = Layout("PNG chunk", detect_chunk, read, write, (".png",))
DATA_LAYOUT = Layout("hidden picture data", detect_data, read)
