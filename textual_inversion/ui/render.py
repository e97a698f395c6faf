"""HTML of the page; every text from a user or a file is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as escape_html
from typing import TYPE_CHECKING
from urllib.parse import quote

from textual_inversion.app.checking import path_in_folder
from textual_inversion.text import counted, legible

if TYPE_CHECKING:
    from pathlib import Path

    from textual_inversion.app.actions import Outcome
    from textual_inversion.app.cards import Card
    from textual_inversion.app.checking import Checking, CheckResult
    from textual_inversion.training.preflight import Finding

_MOST_LEFT_OUT = 100
ROUTE = "textual-inversion"  # relative, so that it also works under a sub-path


def escape(text: str) -> str:
    """Escape any text, file names included, as HTML that UTF-8 can encode."""
    return escape_html(legible(text))


MARK = (
    '<svg class="ti-mark" viewBox="0 0 36 24" aria-hidden="true">'
    '<path d="M9 3 2 12l7 9M27 3l7 9-7 9" fill="none" stroke="currentColor" stroke-width="2.6" '
    'stroke-linecap="round" stroke-linejoin="round"/>'
    '<circle cx="18" cy="12" r="5" fill="var(--ti-accent)"/></svg>'
)


def note(text: str, kind: str = "done", field: str = "", group: str = "") -> str:
    """One sentence under a button; empty text gives nothing.

    Args:
        kind: `done`, `error` or `hint`.
        field: id of the component that the sentence is about; the page's script marks it and shows the sentence beside it.
        group: title of the group that folds this component away; the page's script opens it.
    """
    if not text:
        return ""
    role = "alert" if kind == "error" else "status"
    about = (f' data-field="{escape(field)}"' if field else "") + (f' data-group="{escape(group)}"' if group else "")
    return f'<div class="ti-note ti-note-{kind}" role="{role}"{about}>{escape(text)}</div>'


def outcome(outcome: Outcome, form: str = "", group: str = "") -> str:
    """The note for the result of a click.

    Args:
        form: the prefix of the form's component ids, `create`, `preprocess` or `train`.
        group: title of the group that folds the setting at fault away.
    """
    return note(outcome.text, outcome.kind, f"ti_{form}_{outcome.setting}" if form and outcome.setting else "", group)


def question(outcome: Outcome, answer: str, form: str = "train") -> str:
    """A question before something is done, marked at the field of `form` that it is about, and how to answer it."""
    about = f' data-field="ti_{form}_{escape(outcome.setting)}"' if outcome.setting else ""
    return f'<div class="ti-note ti-note-ask" role="alert"{about}>{escape(outcome.text)} {escape(answer)}</div>'


def findings(items: Sequence[Finding]) -> str:
    """The findings of a check before the start: one line for each problem, one line for everything else."""
    problems = "".join(note(item.text, "hint" if item.kind == "hint" else "error") for item in items if item.kind != "good")
    return problems + note(" ".join(item.text for item in items if item.kind == "good"))


def word(name: str) -> str:
    """An embedding's name as the chip that represents it everywhere on the page."""
    return f'<code class="ti-word">{escape(name)}</code>'


def heading() -> str:
    """The standalone page's name."""
    return f'<div class="ti-heading">{MARK}<h1 class="ti-title">Textual Inversion</h1><span class="ti-pill" hidden></span></div>'


def intro(title: str, text: str) -> str:
    """Title and purpose of a tab."""
    return f'<div class="ti-intro"><h2>{escape(title)}</h2><p>{escape(text)}</p></div>'


def live() -> str:
    """The element in which the page's script draws the running job."""
    return '<div class="ti-live" aria-live="off"><noscript>The progress of training is drawn by JavaScript, which is off.</noscript></div>'


def strip(thumbnails: Sequence[str], total: int, captioned: int) -> str:
    """The pictures of a folder: thumbnails (data URLs), and the number of pictures and captions."""
    images = "".join(f'<img src="{escape(source)}" alt="" loading="lazy">' for source in thumbnails)
    more = f'<span class="ti-more">+{total - len(thumbnails)}</span>' if total > len(thumbnails) else ""
    captions = "all with captions" if captioned == total else f"{captioned} with captions" if captioned else "no captions"
    return f'<div class="ti-strip"><div class="ti-thumbs">{images}{more}</div><span>{counted(total, "picture")}, {captions}</span></div>'


def standing(card: Card | None, name: str, last_step: int | None, begins_with: str = "") -> str:
    """Describe the chosen embedding, and say whether training would do any steps.

    Args:
        card: None where there is no such embedding yet.
        last_step: the step to train to; None = that is chosen at the start.
        begins_with: the vectors that a new embedding would get; empty = not known.
    """
    if not name:
        return note("Choose an embedding, or type a new name.", "hint")
    if card is None:
        begins = f" with {escape(begins_with)}, as the Create tab says" if begins_with else " from the Create tab"
        return f'<div class="ti-note ti-note-hint">{word(name)} does not exist yet: Train creates it{begins}.</div>'
    if reason := card.reason or card.untrainable:
        return f'<div class="ti-note ti-note-error" role="alert">{word(name)} cannot be trained here: {escape(reason)}</div>'
    facts = card.description
    if not facts.step:
        return f'<div class="ti-note ti-note-hint">{word(name)} has {facts.vectors} and has not been trained yet.</div>'
    advice = " It goes on from there." if last_step is None else f" It goes on from there to {last_step}."
    if last_step is not None and facts.step >= last_step:
        advice = f" Raise Max steps above {facts.step} to go on."
    return f'<div class="ti-note ti-note-hint">{word(name)} has {facts.vectors} and is at step {facts.step}.{advice}</div>'


def take_back(name: str) -> str:
    """The button that gives an embedding the vectors that it had before its last run; the page's script listens to it."""
    title = "The present vectors are kept, so that this can be undone in the same way."
    return f'<button type="button" class="ti-try ti-takeback" data-name="{escape(name)}" title="{title}">Take back the last change</button>'


def left_out(items: Sequence[Card]) -> str:
    """A folding list of the embeddings that cannot be trained, with the reasons."""
    if not items:
        return ""
    rows = [f"<li>{word(item.name)} {escape(item.reason or item.untrainable)}</li>" for item in items[:_MOST_LEFT_OUT]]
    more = f"<li>and {len(items) - _MOST_LEFT_OUT} more</li>" if len(items) > _MOST_LEFT_OUT else ""
    summary = f"{counted(len(items), 'embedding')} cannot be trained here"
    return f'<details class="ti-messages ti-leftout"><summary>{summary}</summary><ul>{"".join(rows)}{more}</ul></details>'


def tokens(taken: int, places: int) -> str:
    """The counter under a prompt."""
    return f'<span class="ti-tokens" title="Places that this prompt takes, of those in the chunks that it fills">{taken}/{places}</span>'


def cards(items: Sequence[Card]) -> str:
    """The Textual Inversion cards, those that fit first, or what to do when there are none."""
    if not items:
        return (
            f'<div class="ti-empty">{MARK}<p><strong>No embeddings yet.</strong><br>'
            "Teach one on the Train page, install one under Create there, or put a file into the embeddings folder and refresh.</p></div>"
        )
    return f'<div class="ti-cards" role="list">{"".join(card(item) for item in sorted(items, key=lambda item: bool(item.reason)))}</div>'


def card(item: Card) -> str:
    """One card: a button that inserts its word into the prompt and its partner into the negative prompt; or why it does not fit."""
    name = escape(item.name)
    if item.picture and (changed := _time_of(item.picture)):
        source = f"{ROUTE}/card?name={quote(item.name, safe='', errors='backslashreplace')}&v={changed}"
        face = f'<img src="{escape(source)}" alt="" loading="lazy">'
    else:
        hue = sum(map(ord, item.name)) * 37 % 360
        face = f'<span class="ti-face" aria-hidden="true" style="--ti-hue:{hue}">{escape(item.name[:2])}</span>'
    state = 'aria-disabled="true"' if item.reason else 'aria-pressed="false"'
    prompt = "negative" if item.is_negative else "positive" if item.negative else "edited"
    title = item.reason or f"Put {item.name} into the {'negative ' if item.is_negative else ''}prompt; click again to take it out"
    return (
        f'<div role="listitem"><button type="button" class="ti-card{" ti-unfit" if item.reason else ""}" data-name="{name}" {state} '
        f'data-prompt="{prompt}" data-negative="{escape(item.negative)}" title="{escape(title)}" data-level="{escape(item.level)}" '
        f'data-changed="{item.changed:.0f}" data-steps="{item.description.step or 0}">'
        f'<span class="ti-picture">{face}</span><span class="ti-name">{name}</span>{_about(item)}</button></div>'
    )


def _about(item: Card) -> str:
    """The text below the name on a card."""
    lines = [
        item.description.line(),
        f"on {item.description.checkpoint}" if item.description.checkpoint else "",
        "for the negative prompt" if item.is_negative else f"with {item.negative} in the negative prompt" if item.negative else "",
    ]
    facts = "".join(f'<span class="ti-about">{escape(line)}</span>' for line in lines if line)
    if item.verdict:
        sentence = escape(item.verdict)
        facts += f'<span class="ti-about ti-verdict" data-level="{escape(item.level)}" title="{sentence}">{sentence}</span>'
    return facts + (f'<span class="ti-reason">{escape(item.reason)}</span>' if item.reason else "")


def _time_of(picture: Path) -> int:
    """Modification time of the picture; 0 when it is gone."""
    try:
        return int(picture.stat().st_mtime)
    except OSError:
        return 0


def made(parameters: str, folder: str, seconds: float | None = None, which: str = "") -> str:
    """How a picture in the gallery was made and where it is kept.

    Args:
        seconds: the time that all pictures took; None = it is not said.
        which: the picture, such as `Picture 1 of 4`, where there are several.
    """
    if not parameters:
        return note("Stopped before the first picture was done.", "hint")
    facts = [which, f"{seconds:.1f} s" if seconds is not None else "", f"kept in {folder}" if folder else ""]
    return f'<div class="ti-made"><pre>{escape(parameters)}</pre><span>{escape(" · ".join(fact for fact in facts if fact))}</span></div>'


_MOST_DANGERS = 50
_FILES_OF_A_KIND = {
    "ok": "can be used",
    "unusable": "are whole, and cannot be used",
    "not an embedding": "are no embeddings",
    "picture": "are ordinary pictures",
    "damaged": "are damaged",
    "unchecked": "could not be checked",
    "unsafe": "are unsafe",
}
_CHECK_TEXTS = {
    "offer": """<h2>Check your embedding files?</h2>
<p>A <code>.pt</code> or <code>.bin</code> file can hold a program that runs when something loads the file. This extension reads such
files without running anything; other programs may not. The check looks at every file in the embeddings folder and changes nothing.</p>""",
    "working": "<h2>Checking your embedding files …</h2><p>Nothing in them is run, and nothing is changed.</p>",
}


def check_box(checking: Checking) -> str:
    """The offer to check every file, or the result of the check; the style sheet shows the matching buttons by `data-check`."""
    phase, result = checking.phase, checking.result
    if phase in _CHECK_TEXTS:
        return f'<div class="ti-check" data-check="{phase}">{_CHECK_TEXTS[phase]}</div>'
    if result is None or not phase:
        return ""
    dangerous = ' data-dangerous=""' if result.dangerous else ""
    return f'<div class="ti-check" data-check="{phase}"{dangerous}>{_check_result(result)}</div>'


def _check_result(result: CheckResult) -> str:
    kinds = "".join(
        f"<li><strong>{result.counts[kind]}</strong> {are}</li>" for kind, are in _FILES_OF_A_KIND.items() if result.counts[kind]
    )
    parts = [f"<h2>{escape(result.summary)}</h2>", f'<ul class="ti-counts">{kinds}</ul>']
    if result.dangerous:
        rows = "".join(
            f"<tr><td><code>{escape(path_in_folder(file))}</code></td><td>{escape(file.verdict)}</td></tr>"
            for file in result.dangerous[:_MOST_DANGERS]
        )
        parts.append(f'<table class="ti-dangers"><thead><tr><th>File</th><th>What is in it</th></tr></thead><tbody>{rows}</tbody></table>')
    if (more := len(result.dangerous) - _MOST_DANGERS) > 0:
        parts.append(f"<p>and {more} more</p>")
    if result.moved:
        moved = f"{result.moved} file{'s were' if result.moved != 1 else ' was'} moved to the folder “quarantine” in the embeddings folder"
        parts.append(note(f"{moved}, where no program loads {'them' if result.moved != 1 else 'it'}.", "done"))
    parts += [note(failure, "error") for failure in result.failures[:_MOST_DANGERS]]
    return "".join(parts)
