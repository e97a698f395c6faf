"""The text encoders of the tiny checkpoints for WebUIs that build models from a `.yaml`: LDM's and SGM's own classes at another size.

The `.yaml` beside a checkpoint names them as `target`. Those classes read sizes and vocabulary from a transformers folder, from OpenCLIP's
list of models, or from a hub; this module writes a temporary folder for them. It does not touch the checkpoint's weights.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from textual_inversion.prompts.tokenizer import END, MERGES_FILE, START, VOCABULARY_SIZE, default_tokenizer


def frozen_clip(width: int, layers: int, heads: int, max_length: int = 77, **keywords: Any) -> Any:
    """LDM's `FrozenCLIPEmbedder` with a text encoder of this size; other keywords go to it as they are.

    A function rather than a subclass, because the WebUIs look for exactly that class.

    Args:
        width: of the token table and the hidden states.
        layers: of the transformer.
        heads: of its attention.
        max_length: tokens of a chunk, including start and end.
    """
    from ldm.modules.encoders.modules import FrozenCLIPEmbedder

    with tempfile.TemporaryDirectory() as folder:
        write_clip_folder(Path(folder), width, layers, heads, max_length)
        return FrozenCLIPEmbedder(version=folder, max_length=max_length, **keywords)


def first_of_sdxl(width: int, layers: int, heads: int, **keywords: Any) -> Any:
    """SGM's `FrozenCLIPEmbedder`, SDXL's first text encoder, of this size; see `frozen_clip`."""
    from sgm.modules.encoders.modules import FrozenCLIPEmbedder

    with tempfile.TemporaryDirectory() as folder:
        write_clip_folder(Path(folder), width, layers, heads)
        return FrozenCLIPEmbedder(version=folder, **keywords)


def second_of_sdxl(width: int, layers: int, heads: int, **keywords: Any) -> Any:
    """SGM's `FrozenOpenCLIPEmbedder2`, SDXL's second text encoder, of this size; see `frozen_clip`."""
    from sgm.modules.encoders.modules import FrozenOpenCLIPEmbedder2

    return FrozenOpenCLIPEmbedder2(arch=_add_to_open_clip(width, layers, heads), version=None, **keywords)


def open_clip_of_sd2(width: int, layers: int, heads: int, **keywords: Any) -> Any:
    """LDM's `FrozenOpenCLIPEmbedder`, SD2's text encoder, of this size; see `frozen_clip`."""
    from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder

    return FrozenOpenCLIPEmbedder(arch=_add_to_open_clip(width, layers, heads), version=None, **keywords)


def _add_to_open_clip(width: int, layers: int, heads: int) -> str:
    """Add a model of this size to OpenCLIP's list; returns its name there."""
    import open_clip

    text = {"context_length": 77, "vocab_size": VOCABULARY_SIZE, "width": width, "heads": heads, "layers": layers}
    picture = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}  # is built and thrown away
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"textual-inversion-{width}-{layers}-{heads}.json"
        path.write_text(json.dumps({"embed_dim": width, "vision_cfg": picture, "text_cfg": text}), encoding="utf-8")
        open_clip.add_model_config(path)
    return path.stem


def write_clip_folder(folder: Path, width: int, layers: int, heads: int, max_length: int = 77) -> None:
    """Write the files from which transformers builds `CLIPTextModel` and `CLIPTokenizer`: sizes and CLIP's vocabulary."""
    start, end = default_tokenizer().vocabulary[START], default_tokenizer().vocabulary[END]
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": max_length,
        "vocab_size": VOCABULARY_SIZE,
        "hidden_act": "quick_gelu",
        "bos_token_id": START,
        "eos_token_id": END,
    }
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": max_length, **special}
    words = {word: index for index, word in enumerate(default_tokenizer().vocabulary)}
    files = {"config": config, "tokenizer_config": tokenizer, "special_tokens_map": special, "vocab": words}
    for name, contents in files.items():
        (folder / f"{name}.json").write_text(json.dumps(contents, ensure_ascii=False), encoding="utf-8")
    merges = gzip.decompress(MERGES_FILE.read_bytes()).decode("utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
