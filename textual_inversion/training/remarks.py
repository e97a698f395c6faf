"""Questions about a run whose settings or names can hardly be meant, for those who check it and for those who start it at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from textual_inversion.embedding import Embedding
from textual_inversion.errors import TextualInversionError
from textual_inversion.pictures.contents import list_names
from textual_inversion.pictures.geometry import cropped_share
from textual_inversion.prompts.chunks import CHUNK_TOKENS, chunk_prompt
from textual_inversion.prompts.names import about_name, names_in
from textual_inversion.prompts.schedule import changes
from textual_inversion.prompts.tokenizer import default_tokenizer
from textual_inversion.settings.schema import AUTO
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.text import counted
from textual_inversion.training.data.training_set import TrainingSet

#: Method -> the lowest and the highest learning rate that are usual for it.
USUAL_RATES = {"pulled": (0.001, 0.1), "directional": (0.03, 2.0), "classic": (0.0005, 0.05)}
_FAR = 8  # times the usual rates, beyond which nothing is learned, or nothing but noise
_USUAL_SCALE = 0.014  # of a value in CLIP-L's token table
_RATES_LOOKED_AT = 1000  # steps
_MUCH = 0.25  # cropped share of a picture from which it is mentioned
_SHOWN = 60  # letters of a prompt
_LONGEST, _MOST_VECTORS = 20, 32  # times the length of a word; vectors


def remarks(config: TrainingConfig, captions: Sequence[str], num_vectors: int, embedding: Embedding | None, first_step: int) -> list[str]:
    """Sentences on what should be questioned before the first step.

    Args:
        captions: those that prompts put beside the name.
        num_vectors: of the embedding (1 to 75).
        embedding: the vectors that it starts from; None where they are not read yet.
        first_step: its steps so far.
    """
    found = [about_far_rate(config, first_step), _about_length(embedding), *_about_captions(config.name, captions, num_vectors)]
    if num_vectors > _MOST_VECTORS:
        found.append(f"It has {num_vectors} vectors: they take {num_vectors} of the {CHUNK_TOKENS} places of a prompt; 1 to 16 are usual.")
    return [sentence for sentence in found if sentence]


def peak_rate(config: TrainingConfig, first_step: int) -> float | None:
    """The highest learning rate of the first thousand steps; None where it is left to the method."""
    if str(config.learning_rate).strip().lower() == AUTO:
        return None
    rates = config.rates(first_step, _USUAL_SCALE)
    last_step = max(first_step + 1, min(config.total_steps, first_step + _RATES_LOOKED_AT))
    return max(rates.at(step) for step in range(first_step + 1, last_step + 1))


def about_far_rate(config: TrainingConfig, first_step: int) -> str:
    """A sentence on a learning rate that is far outside what works; empty where it is not."""
    peak, (lowest, highest) = peak_rate(config, first_step), USUAL_RATES[config.method]
    if peak is None or lowest / _FAR <= peak <= highest * _FAR:
        return ""
    effect = "learns next to nothing" if peak < lowest else "destroys what it has learned at every step"
    usual = f"{lowest:g} to {highest:g} are usual for “{config.method}”, and “auto” fits it"
    return f"With a learning rate of {peak:g} an embedding {effect}: {usual}. Is that rate meant?"


def about_crops(config: TrainingConfig, listed: TrainingSet) -> str:
    """A sentence on pictures of which much is cropped away; empty where that is not so."""
    if listed.options.whole:
        return ""
    shares = sorted(((cropped_share(picture.original, picture.size), picture.path.name) for picture in listed.pictures), reverse=True)
    much = [name for share, name in shares if share > _MUCH]
    if not much:
        return ""
    advice = "" if config.buckets else "; aspect buckets would keep more"
    return f"{shares[0][0]:.0%} of {list_names(much)} {'is' if len(much) == 1 else 'or less'} cropped away{advice}."


def about_changing(prompts: Sequence[str]) -> str:
    """A sentence on prompts that would change while a picture is drawn, which training has no steps for; empty where there is none."""
    changing = [prompt for prompt in prompts if changes(prompt)]
    if not changing:
        return ""
    shown = f"{changing[0][:_SHOWN]}…" if len(changing[0]) > _SHOWN else changing[0]
    one = len(changing) == 1
    which = f"{counted(len(changing), 'prompt')} {'has' if one else 'have'} [a:b:0.5], [a|b] or AND in {'it' if one else 'them'}"
    return f"{which}, such as “{shown}”: training reads that as plain text, signs and numbers too."


def _about_length(embedding: Embedding | None) -> str:
    """A sentence on vectors that are much longer than those of words."""
    if embedding is None:
        return ""
    for vectors in embedding.vectors.values():
        length, usual = float(vectors.norm(dim=1).max()), _USUAL_SCALE * math.sqrt(vectors.shape[1])
        if length > _LONGEST * usual:
            advice = "they drown the rest of every prompt; create the embedding anew, and train it with a lower rate"
            return f"Its vectors are up to {length:.3g} long, where those of words are about {usual:.2g}: {advice}."
    return ""


def _about_captions(name: str, captions: Sequence[str], num_vectors: int) -> Iterator[str]:
    """Sentences on a name that is a word of other prompts, and on captions that hold it."""
    yield about_name(name)
    known, tokenizer = {name: num_vectors}, default_tokenizer()
    named = []
    for caption in dict.fromkeys(captions):
        if names_in([caption], known):
            try:
                named += [caption] if any(chunk.splices for chunk in chunk_prompt(caption, tokenizer, known)) else []
            except TextualInversionError:
                continue  # the check of the prompts tells
    if named:
        one = len(named) == 1
        where = f"{counted(len(named), 'caption')} {'holds' if one else 'hold'} the name too, such as “{named[0][:60]}”"
        yield f"{where}: the embedding stands there as well. A template of “[filewords]” alone, or other captions, has it once."
