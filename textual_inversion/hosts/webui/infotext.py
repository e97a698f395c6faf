"""The `TI hashes` beside a picture, complete for every picture. Knows nothing of files.

A WebUI notes an embedding's hash only while it encodes a prompt that names it, if at all. A prompt that was encoded before is not
encoded again, so a second picture tells none or only half of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modules import prompt_parser, shared

KEY = "TI hashes"


def complete_hashes(p: Any, encoder: Any) -> None:
    """Write the hashes of all embeddings that the batch at hand names into its infotext.

    Args:
        p: the WebUI's generation, its prompts encoded.
        encoder: what cuts prompts into chunks, with `process_texts`; None leaves the infotext alone.
    """
    if encoder is None or not shared.opts.textual_inversion_add_hashes_to_infotext:
        return
    hashes: dict[str, str] = {}
    for embedding in _named(p, encoder):
        if getattr(embedding, "shorthash", None):
            hashes[embedding.name.replace(":", "").replace(",", "")] = embedding.shorthash
    if hashes:
        p.extra_generation_params[KEY] = ", ".join(f"{name}: {value}" for name, value in hashes.items())
    else:
        p.extra_generation_params.pop(KEY, None)


def _named(p: Any, encoder: Any) -> Iterator[Any]:
    """The WebUI's embeddings in the prompts of the batch, as its own tokenizer finds them."""
    for text in _texts(p):
        for chunks in encoder.process_texts([text])[0]:
            for chunk in chunks:
                yield from (fix.embedding for fix in chunk.fixes)


def _texts(p: Any) -> list[str]:
    """Every text that is encoded for the batch: prompts with their AND and `[from:to:when]` taken apart, each once."""
    positive = [*p.prompts, *(getattr(p, "hr_prompts", None) or [])]
    negative = [*p.negative_prompts, *(getattr(p, "hr_negative_prompts", None) or [])]
    flat = prompt_parser.get_multicond_prompt_list(prompt_parser.SdConditioning(positive))[1]
    schedules = prompt_parser.get_learned_conditioning_prompt_schedules([*flat, *negative], p.steps)
    return list(dict.fromkeys(text for schedule in schedules for _, text in schedule))
