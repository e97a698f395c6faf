"""`emb_params` outside its usual place: in a pickle, as kohya writes `.pt` and `.bin`, or with other keys beside it.

Knows nothing of files. OneTrainer spells the key `emp_params` and may add `emp_params_out`, the text encoder's wished output;
a file with that alone holds no words.
"""

from __future__ import annotations

from textual_inversion.formats.layout import Contents, Layout, Parsed, StoredTensor, as_vectors
from textual_inversion.formats.layouts.encoders import ONLY_OUTPUTS, by_width, names_encoder
from textual_inversion.formats.layouts.metadata import beside

_KOHYA, _ONETRAINER, _OUTPUT = "emb_params", "emp_params", "emp_params_out"


def detect(contents: Contents) -> bool:
    """Whether there is an `emb_params` tensor, and no key that names a text encoder, which would contradict it."""
    return _holds(contents, _KOHYA)


def read(contents: Contents) -> list[Parsed]:
    """The vectors; other keys are left out."""
    return [beside(contents, by_width(as_vectors(contents.tree[_KOHYA], _KOHYA)))]


def detect_onetrainer(contents: Contents) -> bool:
    """Whether there is an `emp_params` or an `emp_params_out` tensor, and no key that names a text encoder."""
    return _holds(contents, _ONETRAINER) or _holds(contents, _OUTPUT)


def read_onetrainer(contents: Contents) -> list[Parsed]:
    """The vectors of `emp_params`; a file with outputs only cannot be used."""
    if _ONETRAINER in contents.tree:
        return [beside(contents, by_width(as_vectors(contents.tree[_ONETRAINER], _ONETRAINER)))]
    return [beside(contents, Parsed({}, unusable=ONLY_OUTPUTS.format(_OUTPUT)))]


def _holds(contents: Contents, key: str) -> bool:
    tree = contents.tree
    return isinstance(tree, dict) and isinstance(tree.get(key), StoredTensor) and not any(map(names_encoder, tree))


LAYOUT = Layout("emb_params", detect, read)
ONETRAINER = Layout("OneTrainer", detect_onetrainer, read_onetrainer)
