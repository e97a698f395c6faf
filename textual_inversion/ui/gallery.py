"""HTML of the pictures under review, with their crops, captions and problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual_inversion.app.review import ALL, DONE, LEFT_OUT, MOST_CAPTION, UNREADABLE, ReviewSession
from textual_inversion.text import counted
from textual_inversion.ui.render import ROUTE, escape, note

if TYPE_CHECKING:
    from textual_inversion.pictures.salience import Focus
    from textual_inversion.preprocess.layout import PlannedView
    from textual_inversion.preprocess.plan import Planned

#: Filter -> label of its button, in the order of the buttons.
FILTERS = {
    ALL: "All",
    "small": "Too small",
    "blurred": "Blurred",
    "duplicate": "The same as another",
    "shape": "Much cut away",
    "caption": "Not described",
    UNREADABLE: "Cannot be used",
    DONE: "Done before",
    LEFT_OUT: "Left out",
}
_MOST_SIZES = 8


def head(review: ReviewSession) -> str:
    """The numbers of pictures and results, their sizes, and the filters; empty without a review."""
    if not review.id:
        return ""
    counts, sizes = review.counts(), review.sizes()
    total = counted(counts[ALL], "picture")
    results = _captions_line(review) if review.config and review.config.captions_only else _sizes_line(sizes)
    filters = "".join(
        f'<button type="button" data-do="show" data-kind="{kind}" aria-pressed="{str(kind == review.show).lower()}">'
        f"{label} <b>{counts[kind]}</b></button>"
        for kind, label in FILTERS.items()
        if counts[kind] or kind == review.show
    )
    notes = "".join(note(text, "hint") for text in review.notes)
    return (
        f'<div class="ti-look-head"><h2>{total}, {results}</h2>'
        '<button type="button" class="ti-look-close" data-do="forget" title="Forget what was looked at and changed">Close</button>'
        f'{notes}<div class="ti-switch" role="group" aria-label="Which pictures are shown">{filters}</div></div>'
    )


def tiles(review: ReviewSession) -> str:
    """The pictures of the current page, with buttons to other pages."""
    if not review.id:
        return ""
    places = review.shown()
    pictures = "".join(_tile(review, place) for place in places)
    nothing = "" if places else '<p class="ti-look-none">There is no such picture any more.</p>'
    copies = len(review.config.flips) if review.config else 0
    hint = "Click a picture to leave it out or take it back. Choices and captions are kept on disk as you make them."
    hint += f" Each gets {copies} mirrored {'copy' if copies == 1 else 'copies'} as well." if copies else ""
    return (
        f'<div class="ti-look" data-look="{review.id}"><p class="ti-look-hint">{hint}</p>'
        f'<div class="ti-tiles">{pictures}</div>{nothing}{_foot(review)}</div>'
    )


def acknowledged(review: ReviewSession, client: str) -> str:
    """The element that tells a page's script which of its commands were carried out."""
    taken = review.taken.get(client, 0)
    return f'<span class="ti-look-ack" data-look="{review.id}" data-client="{escape(client)}" data-taken="{taken}"></span>'


def _sizes_line(sizes: dict[tuple[int, int], int]) -> str:
    results = counted(sum(sizes.values()), "result")
    most = sorted(sizes.items(), key=lambda item: -item[1])[:_MOST_SIZES]
    if len(sizes) == 1:
        return f"{results} of {_pixels(most[0][0])}"
    listed = ", ".join(f"{number} of {_pixels(size)}" for size, number in most)
    more = f" and {len(sizes) - len(most)} other sizes" if len(sizes) > len(most) else ""
    return f"{results}: {listed}{more}" if sizes else results


def _captions_line(review: ReviewSession) -> str:
    written = sum(view.chosen and view.caption is not None for item in review.planned for view in item.views)
    return f"{counted(written, 'caption')}; captions only, no pictures are written"


def _pixels(size: tuple[float, float]) -> str:
    return f"{size[0]:.0f} × {size[1]:.0f}"


def _tile(review: ReviewSession, place: int) -> str:
    item = review.planned[place]
    problems = "".join(f'<p class="ti-problem">{escape(problem.text)}</p>' for problem in item.problems)
    problems += f'<p class="ti-problem ti-problem-fatal">{escape(item.reason)}</p>' if item.reason else ""
    parts = "".join(_part(view, place, alone=len(item.views) == 1) for view in item.views)
    results = ", ".join(dict.fromkeys(_pixels(view.size) for view in item.views))
    sizes = f"{_pixels(item.size)} → {results}" if results else _pixels(item.size) if item.size[0] else ""
    done = '<span class="ti-done">is there already</span>' if item.done else ""
    if item.done and not item.chosen:
        problems += '<p class="ti-problem">Its result stays in the destination; delete it there if it is not to be trained on.</p>'
    out = "" if item.chosen or not item.views else " data-out"
    return (
        f'<figure class="ti-tile" data-item="{place}"{out}>{_shot(review, place, item)}'
        f'<figcaption><strong title="{escape(item.source.name)}">{escape(item.source.name)}</strong>'
        f"<span>{sizes}</span>{done}</figcaption>{parts}{problems}</figure>"
    )


def _shot(review: ReviewSession, place: int, item: Planned) -> str:
    """The picture, with the kept part bright and the rest dark; a click on it leaves the picture out."""
    width, height = item.size
    if not item.views or not width or not height:
        return '<div class="ti-shot ti-shot-none">no picture</div>'
    cut = any(view.box != (0, 0, width, height) for view in item.views)
    overlay = _crops(item, width, height) if cut else ""
    overlay += _faces(item.focus, width, height) if item.focus else ""
    label = escape(f"Use {item.source.name}")
    return (
        f'<button type="button" class="ti-shot" data-do="choose" role="switch" aria-checked="{str(item.chosen).lower()}" '
        f'aria-label="{label}" title="Click to leave it out, or to take it back" style="--ti-w:{width};--ti-h:{height}">'
        f'<img src="{ROUTE}/source?look={review.id}&amp;item={place}" alt="" loading="lazy">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{overlay}</svg></button>'
    )


def _crops(item: Planned, width: int, height: int) -> str:
    boxes = [view.box for view in item.views]
    holes = " ".join(f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z" for left, top, right, bottom in boxes[:1])
    if len(boxes) > 1:  # parts overlap, and an overlap would be drawn as outside: brighten the union of all parts
        left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
        right, bottom = max(box[2] for box in boxes), max(box[3] for box in boxes)
        holes = f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z"
    frames = "".join(
        f'<rect class="ti-crop" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"/>'
        for left, top, right, bottom in boxes
    )
    return f'<path class="ti-cut-away" fill-rule="evenodd" d="M0 0H{width}V{height}H0Z {holes}"/>{frames}'


def _faces(focus: Focus, width: int, height: int) -> str:
    return "".join(
        f'<rect class="ti-seen" x="{left * width:.1f}" y="{top * height:.1f}" '
        f'width="{(right - left) * width:.1f}" height="{(bottom - top) * height:.1f}"/>'
        for left, top, right, bottom in focus.faces
    )


def _part(view: PlannedView, place: int, *, alone: bool) -> str:
    """The caption of a result, with a switch where a picture has several results."""
    name = "Caption" if alone else f"Caption of part {view.part + 1}"
    box = "" if alone else (
        f'<label class="ti-option"><input type="checkbox" data-do="choose" data-part="{view.part}"{" checked" if view.chosen else ""}>'
        f"part {view.part + 1}</label>"
    )  # fmt: skip
    return (
        f'<div class="ti-part">{box}<textarea rows="2" data-do="caption" data-part="{view.part}" aria-label="{name}" '
        f'maxlength="{MOST_CAPTION}" placeholder="No caption">{escape(view.caption or "")}</textarea></div>'
    )


def _foot(review: ReviewSession) -> str:
    places = review.places()
    first, last = review.page, review.pages - 1
    several = f'<button type="button" data-do="page" data-page="{first - 1}"{"" if first else " disabled"}>Back</button>'
    several += f"<span>page {first + 1} of {last + 1}</span>"
    several += f'<button type="button" data-do="page" data-page="{first + 1}"{"" if first < last else " disabled"}>Next</button>'
    every = ""
    if review.show not in (ALL, UNREADABLE) and places:
        every = (
            f'<button type="button" data-do="choose_shown">Leave out all {len(places)}</button>'
            f'<button type="button" data-do="choose_shown" data-chosen>Take all {len(places)}</button>'
        )
    turning = several if last else ""
    return f'<div class="ti-look-foot">{every}{turning}</div>' if every or turning else ""
