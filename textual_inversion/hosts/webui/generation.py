"""One generation of the WebUI: its prompts rewritten, its infotext completed, its caches emptied, the fields of its txt2img page.

The WebUI may load its own modules again, so they are imported at the call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import lru_cache, partial
from typing import Any

from textual_inversion.prompts.names import rewrite_names

HASHES_KEY = "TI hashes"
_SAME_CHECKPOINT = ("", "Use same checkpoint")
_EVERYTHING = slice(None)
#: API name and infotext label of each txt2img field, in the order of `app.actions.DRAWING_SETTINGS`; a component has one of them.
_FIELDS = (
    ("prompt", "Prompt"),
    ("negative_prompt", "Negative prompt"),
    ("steps", "Steps"),
    ("sampler_name", "Sampler"),
    ("cfg_scale", "CFG scale"),
    ("seed", "Seed"),
    ("width", "Size-1"),
    ("height", "Size-2"),
)


def rewrite_all(p: Any, known: Collection[str], known_in_hires: Collection[str] | None = None, part: slice = _EVERYTHING) -> None:
    """Rewrite `<name>` and `<name:1.2>` in the prompts of a generation, in place; see `rewrite_names`. A second call changes nothing.

    Lists stay the same objects, since the WebUI hands them to other extensions too. A list that this kind of generation lacks is skipped.

    Args:
        p: the WebUI's `StableDiffusionProcessing`, its prompts set up.
        known: names of embeddings for the first pass.
        known_in_hires: names for the hires pass, where they differ.
        part: which pictures of the generation are rewritten; those of the current batch always are.
    """
    for prefix, names in (("", known), ("hr_", known if known_in_hires is None else known_in_hires)):
        rewrite = lru_cache(maxsize=None)(partial(rewrite_names, known=names))  # most prompts of a generation are equal
        for kind in ("prompts", "negative_prompts"):
            _rewrite_list(p, f"all_{prefix}{kind}", rewrite, part)
            _rewrite_list(p, f"{prefix}{kind}", rewrite, _EVERYTHING)
    for attribute in ("main_prompt", "main_negative_prompt"):  # a grid's infotext shows these
        if isinstance(text := getattr(p, attribute, None), str):
            setattr(p, attribute, rewrite_names(text, known))


def _rewrite_list(p: Any, attribute: str, rewrite: Callable[[str], str], part: slice) -> None:
    texts = getattr(p, attribute, None)
    if isinstance(texts, tuple):
        texts = list(texts)
        setattr(p, attribute, texts)
    if isinstance(texts, list):
        texts[part] = [rewrite(text) if isinstance(text, str) else text for text in texts[part]]


def has_own_hires_checkpoint(p: Any) -> bool:
    """Whether the hires pass uses its own checkpoint, which may know other names."""
    return bool(getattr(p, "enable_hr", False)) and (getattr(p, "hr_checkpoint_name", None) or "") not in _SAME_CHECKPOINT


def complete_hashes(p: Any, encoder: Any) -> None:
    """Write the hashes of all embeddings that the batch names into its infotext, as `TI hashes`.

    A WebUI records an embedding's hash only while it encodes a prompt that names the embedding, and it caches encoded prompts.
    Without this, the second picture would have no hashes, or only half of them.

    Args:
        p: the WebUI's generation, its prompts encoded.
        encoder: the WebUI's object that splits prompts into chunks, with `process_texts`; None leaves the infotext alone.
    """
    from modules import shared

    if encoder is None or not shared.opts.textual_inversion_add_hashes_to_infotext:
        return
    hashes: dict[str, str] = {}
    for embedding in _named(p, encoder):
        if getattr(embedding, "shorthash", None):
            hashes[embedding.name.replace(":", "").replace(",", "")] = embedding.shorthash
    if hashes:
        p.extra_generation_params[HASHES_KEY] = ", ".join(f"{name}: {value}" for name, value in hashes.items())
    else:
        p.extra_generation_params.pop(HASHES_KEY, None)


def _named(p: Any, encoder: Any) -> Iterator[Any]:
    """The WebUI's embeddings in the prompts of the batch, as its own tokenizer finds them."""
    for text in _texts(p):
        for chunks in encoder.process_texts([text])[0]:
            for chunk in chunks:
                yield from (fix.embedding for fix in chunk.fixes)


def _texts(p: Any) -> list[str]:
    """Every text that is encoded for the batch: prompts with their AND and `[from:to:when]` taken apart, each once."""
    from modules import prompt_parser

    positive = [*p.prompts, *(getattr(p, "hr_prompts", None) or [])]
    negative = [*p.negative_prompts, *(getattr(p, "hr_negative_prompts", None) or [])]
    flat = prompt_parser.get_multicond_prompt_list(prompt_parser.SdConditioning(positive))[1]
    schedules = prompt_parser.get_learned_conditioning_prompt_schedules([*flat, *negative], p.steps)
    return list(dict.fromkeys(text for schedule in schedules for _, text in schedule))


def forget_conditioning() -> None:
    """Empty the WebUI's caches of encoded prompts, which do not notice changed vectors of an embedding."""
    from modules import processing

    first, hires = processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img
    for cache in (first.cached_c, first.cached_uc, hires.cached_hr_c, hires.cached_hr_uc):
        cache[0] = None  # clears the cached prompts only: a generation that reads the cache right now still gets its conditioning


def txt2img_components() -> list[Any]:
    """The txt2img page's prompt, negative prompt, steps, sampler, guidance, seed, width and height; empty where one is missing."""
    from modules import infotext_utils

    fields = infotext_utils.paste_fields.get("txt2img", {}).get("fields") or []
    known: dict[Any, Any] = {}
    for field in reversed(fields):
        for name in (getattr(field, "api", None), field[1]):
            if isinstance(name, str):
                known[name] = field[0]
    components = [known.get(api, known.get(label)) for api, label in _FIELDS]
    return components if None not in components else []
