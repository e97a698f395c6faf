"""What the server writes into the page: escaped, and the right words."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.app.actions import Actions
from textual_inversion.app.cards import Card
from textual_inversion.description import EmbeddingDescription
from textual_inversion.hosts.fake import FakeEngine
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.ui import render
from textual_inversion.ui.page import TrainPage

NASTY = "\"><img src=x onerror=alert(1)>'&</code>"


class Tags(HTMLParser):
    """Collects the tags of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def everything(text: str) -> list[str]:
    card = Card(text, EmbeddingDescription(2, text, 10))
    return [
        render.note(text),
        render.note(text, "error"),
        render.word(text),
        render.intro(text, text),
        render.standing(None, text, 5),
        render.standing(None, text, 5, text),
        render.standing(card, text, 5),
        render.standing(Card(text, reason=text), text, 5),
        render.card(card),
        render.card(Card(text, reason=text, description=EmbeddingDescription(checkpoint=text), negative=text)),
        render.left_out([Card(text, reason=text), Card(text, untrainable=text)]),
        render.card(Card(text, EmbeddingDescription(1, "SD1"), picture=Path(__file__))),
        render.made(text, text, 1.5, text),
        render.strip([text], 3, 1),
    ]


@given(st.text(min_size=1) | st.just(NASTY))
def test_no_text_becomes_a_tag_or_an_attribute(text: str) -> None:
    harmless = [[(tag, set(found)) for tag, found in Tags(html).tags] for html in everything("plain")]
    assert [[(tag, set(found)) for tag, found in Tags(html).tags] for html in everything(text)] == harmless


def test_names_of_files_that_are_no_text_can_be_sent() -> None:
    for html in everything("caf\udce9"):
        assert html.encode()
    assert r"it lies in caf\udce9.bin." in render.left_out([Card("caf_", untrainable="it lies in caf\udce9.bin.")])


def test_a_card_that_fits_can_be_pressed_and_one_that_does_not_says_why() -> None:
    fits = dict(Tags(render.card(Card("cat", EmbeddingDescription(4, "SD1", 300)))).tags)
    assert fits["button"]["aria-pressed"] == "false"
    assert fits["button"]["data-name"] == "cat"
    html = render.card(Card("old", reason="made for SD2: 1024 wide."))
    assert Tags(html).tags[1][1]["aria-disabled"] == "true"
    assert "made for SD2: 1024 wide." in html


def test_a_card_shows_vectors_family_and_steps() -> None:
    html = render.card(Card("cat", EmbeddingDescription(4, "SD1", 300)))
    assert "4 vectors · SD1 · step 300" in html
    assert "1 vector ·" in render.card(Card("cat", EmbeddingDescription(1, "SD1")))


def test_a_card_tells_its_checkpoint_and_its_partner() -> None:
    html = render.card(Card("cat", EmbeddingDescription(1, "SD1", checkpoint="v1-5-pruned"), negative="cat-neg"))
    assert "on v1-5-pruned" in html
    assert "with cat-neg in the negative prompt" in html
    assert dict(Tags(html).tags)["button"]["data-prompt"] == "positive"
    assert dict(Tags(html).tags)["button"]["data-negative"] == "cat-neg"
    html = render.card(Card("cat-neg", EmbeddingDescription(1, "SD1"), is_negative=True))
    assert "for the negative prompt" in html
    assert dict(Tags(html).tags)["button"]["data-prompt"] == "negative"
    assert dict(Tags(render.card(Card("dog", EmbeddingDescription(1, "SD1")))).tags)["button"]["data-prompt"] == "edited"


def test_a_card_that_does_not_fit_tells_what_is_known_and_why() -> None:
    html = render.card(Card("old", EmbeddingDescription(2, "SD2", 100, "v2-1"), reason="made for SD2: 1024 wide."))
    assert [said in html for said in ("2 vectors · SD2 · step 100", "on v2-1", "made for SD2: 1024 wide.")] == [True] * 3


def test_those_that_cannot_be_trained_are_listed_with_their_reasons() -> None:
    assert render.left_out([]) == ""
    html = render.left_out([Card("old", reason="made for SD2."), Card("toy", untrainable="it lies in pack.bin.")])
    assert [said in html for said in ("2 embeddings cannot be trained here", "made for SD2.", "it lies in pack.bin.")] == [True] * 3
    many = render.left_out([Card(f"e{index}", reason="made for SD2.") for index in range(5000)])
    assert "and 4900 more" in many
    assert len(many) < 20_000


def test_a_picture_that_is_gone_leaves_the_letters() -> None:
    assert "ti-face" in render.card(Card("cat", picture=Path("gone.png")))


def test_a_picture_whose_name_is_not_plain_is_addressed_safely() -> None:
    source = str(dict(Tags(render.card(Card("a&b c", EmbeddingDescription(1, "SD1"), picture=Path(__file__)))).tags)["img"]["src"])
    assert source.startswith("textual-inversion/card?name=a%26b%20c&v=")


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (None, "does not exist yet"),
        (Card("cat", EmbeddingDescription(2, "SD1", 0)), "2 vectors and has not been trained yet"),
        (Card("cat", EmbeddingDescription(2, "SD1", 100)), "goes on from there to 300"),
        (Card("cat", EmbeddingDescription(2, "SD1", 300)), "Raise Max steps above 300"),
        (Card("cat", reason="made for SD2."), "cannot be trained here: made for SD2."),
        (Card("cat", EmbeddingDescription(1), untrainable="it lies in pack.bin."), "cannot be trained here: it lies in pack.bin."),
    ],
)
def test_where_an_embedding_stands(card: Card | None, said: str) -> None:
    assert said in render.standing(card, "cat", 300)


def test_no_cards_say_what_to_do() -> None:
    assert "No embeddings yet" in render.cards([])


def test_where_an_embedding_stands_while_the_steps_are_left_open(engine: FakeEngine) -> None:
    engine.create(NewEmbedding("cat", "cat", 2))
    page = TrainPage({}, {}, {}, {}, Actions(engine))
    for steps in ("auto", "", None, " auto ", "many", "400", "400 "):
        assert "has not been trained yet" in page.stand("cat", steps)
    card = Card("cat", EmbeddingDescription(2, "SD1", 300))
    assert render.standing(card, "cat", None).endswith("is at step 300. It goes on from there.</div>")
