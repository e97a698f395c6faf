"""The layout of the first textual inversion: `string_to_param` is a `torch.nn.ParameterDict` of words. Knows nothing of files.

torch 1.11 and later versions pickle a `ParameterDict` with different attributes, but all keep the tensors in `_parameters`. One
file may hold several words, each an embedding of its own; A1111 refuses such files. DreamArtist writes A1111's layout twice:
`X.pt` for the prompt and `X-neg.pt` for the negative prompt.
"""

from __future__ import annotations

from textual_inversion.formats.layout import Contents, Layout, Parameters, Parsed, as_text, as_vectors
from textual_inversion.formats.layouts.a1111_pt import provenance_of
from textual_inversion.formats.layouts.encoders import by_width


def detect(contents: Contents) -> bool:
    """Whether `string_to_param` is a `ParameterDict`, or a dict of several words."""
    params = contents.tree.get("string_to_param") if isinstance(contents.tree, dict) else None
    return isinstance(params, dict) and len(params) > 0 and (isinstance(params, Parameters) or len(params) > 1)


def read(contents: Contents) -> list[Parsed]:
    """Every word of `string_to_param`, in the file's order.

    Raises:
        EmbeddingError: a word without vectors.
    """
    tree = contents.tree
    params = tree["string_to_param"]
    provenance = provenance_of(tree)
    found: list[Parsed] = []
    for key, value in params.items():
        alone = len(params) == 1
        vectors = by_width(as_vectors(value, str(key)[:60])).vectors
        found.append(Parsed(vectors, as_text(tree.get("name") if alone else key), provenance, None if alone else str(key)[:200]))
    return found


LAYOUT = Layout("original .pt", detect, read)
