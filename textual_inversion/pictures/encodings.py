"""Tells in which encoding a text was written that is no UTF-8: by what its letters would be, as languages use them.

Two-byte encodings count only where every pair of bytes is one of theirs. Where no reading is plausible, or two are, nothing is guessed.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable

_LEAST, _AHEAD = 0.3, 0.1  # what the best reading has to reach, and how far it has to be ahead of the next
_FEW = 0.2  # share of letters outside ASCII up to which a text is European
_OUTSIDE = re.compile(r"[^\x00-\x7f]+")
_LETTER = re.compile(r"[A-Za-z]")

# The letters that texts are mostly made of: about half of any text are among these few hundred.
_SIMPLIFIED = frozenset(
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经十三之进着等部"
    "度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正"
    "心反你明看原又么利比或但质气第向道命此变条只没结解问意建月公无系军很情者最立代想已通并提直题党程展五果料象员革位入常文总次品式活设及管特件长"
    "求老头基资边流路级少图山统接知较将组见计别她手角期根论运农指几九区强放决西被干做必战先回则任取据处队南给色光门即保治北造百规热领七海口东导器"
    "白红黑蓝绿黄紫灰粉色头发眼睛女孩男裙衣服帽花草树猫狗站坐微笑背景风格照片画室内外夜晚单脸短长穿戴"
)
_TRADITIONAL = frozenset(
    "的一是不了人在有我他這中大來上國個到說們為子和你地出道也時年得就那要下以生會自著去之過家學對可她里後小麼心多天而能好都然沒日於起還發成事只作"
    "當想看文無開手十用主行方又如前所本見經頭面公同三已老從動兩長知民樣現分將外但身些與高意進把法此實回二理美點月明其種聲全工己話兒者向情部正名定"
    "女問力機給等幾很業最間新什打便位因重被走電四第門相次東政海口使教西再平真聽世氣信北少關並內加化由卻代軍產入先山五太水萬市眼體別處總才場師書比"
    "白紅黑藍綠黃紫灰粉色髮睛孩男裙衣服帽花草樹貓狗站坐微笑背景風格照片畫室夜晚單臉短穿戴"
)
_HANGUL = frozenset(
    "이다는의가에을하고로한은지기도를사나시어아인서해리대자정수일그스있부적전보상것제장구여주만라면원들동안과공국게선오성모으할경조까색배흰검빨파머눈소녀"
)
_CYRILLIC = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфёъ"  # by how often Russian has them
_CYRILLIC_MORE = "іїєґўјљњћђџ"


def decode(data: bytes, neighbours: Callable[[], bytes] = bytes) -> str | None:
    """The text of a file; None where its encoding cannot be told.

    UTF-8 and UTF-16, without a mark too; otherwise the most plausible of GBK, Big5, Shift-JIS, EUC-JP, Korean, Windows-1251, KOI8-R and
    Windows-1252.

    Args:
        neighbours: gives the contents of files that were probably written by the same program, which tell more than a few letters alone.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _strictly(data, "utf-16")
    if data[1::2].count(0) > len(data) // 4:  # UTF-16 without its mark: every second byte of most letters is 0
        return _strictly(data, "utf-16-le")
    if data[::2].count(0) > len(data) // 4:
        return _strictly(data, "utf-16-be")
    data = data.replace(b"\0", b"")
    if (text := _strictly(data, "utf-8-sig")) is not None:
        return text
    encoding = _most_plausible(data) or _most_plausible(neighbours())
    text = _strictly(data, encoding) if encoding else None
    return text if encoding and text is not None and _SCORES[encoding](text) >= _LEAST else None


def is_utf8(data: bytes) -> bool:
    """Whether bytes are a text in UTF-8, as most are."""
    return _strictly(data, "utf-8") is not None


def _strictly(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _most_plausible(data: bytes) -> str | None:
    """The encoding of a text with letters outside ASCII; None where none is plausible, or two are."""
    if data.isascii():
        return None
    found: list[tuple[float, str, str]] = []
    for encoding, score in _SCORES.items():
        text = _strictly(data, encoding)
        if text is not None and (value := score(text)) >= _LEAST and all(text != other for _, _, other in found):
            found.append((value, encoding, text))
    found.sort(reverse=True)
    if not found or (len(found) > 1 and found[0][0] - found[1][0] < _AHEAD):
        return None
    return found[0][1]


def _mean(text: str, value: Callable[[str], float]) -> float:
    """Mean value (at most 1) of the letters outside ASCII."""
    letters = "".join(_OUTSIDE.findall(text))
    return sum(map(value, letters)) / len(letters)


def _east(text: str, value: Callable[[str], float]) -> float:
    """The mean, less for letters that stand alone inside words of ASCII: there two bytes of another encoding were taken together."""
    alone = [run for run in _OUTSIDE.finditer(text) if len(run[0]) == 1]
    inside = sum(bool(_LETTER.match(text[max(0, run.start() - 1)]) or _LETTER.match(text[run.end() : run.end() + 1])) for run in alone)
    return _mean(text, value) - 1.5 * inside / len("".join(_OUTSIDE.findall(text)))


def _is_punctuation(letter: str) -> bool:
    return "\u3000" <= letter <= "\u3002" or "\u3008" <= letter <= "\u3011" or "\uff01" <= letter <= "\uff5e" or letter in "·—‘’“”…、"


def _chinese(common: frozenset[str], encoding: str) -> Callable[[str], float]:
    """Values of letters in a Chinese encoding, which has the usual letters in front of the rare ones."""
    usual = {"gb2312": (0xB0, 0xD7), "big5": (0xA4, 0xC6)}[encoding]

    def value(letter: str) -> float:
        if letter in common:
            return 1.0
        if _is_punctuation(letter):
            return 0.4
        lead = _lead(letter, encoding)
        if "\u4e00" <= letter <= "\u9fff":
            return 0.4 if usual[0] <= lead <= usual[1] else -0.2
        return -1.0

    return value


def _lead(letter: str, encoding: str) -> int:
    """The first byte of a letter; 0 where the encoding lacks it."""
    try:
        return letter.encode(encoding)[0]
    except UnicodeEncodeError:
        return 0


def _japanese(letter: str) -> float:
    if "\u3041" <= letter <= "\u30fc":
        return 1.0
    if _is_punctuation(letter):
        return 0.4
    if "\u4e00" <= letter <= "\u9fff":
        return 0.45 if 0x88 <= _lead(letter, "cp932") <= 0x97 else -0.2
    return -0.5  # narrow kana, and others


def _korean(letter: str) -> float:
    if letter in _HANGUL:
        return 1.0
    if "\uac00" <= letter <= "\ud7a3":
        return 0.5 if len(letter.encode("euc_kr", "replace")) == 2 else -0.5  # others are written as 8 bytes, and hardly used
    return 0.3 if _is_punctuation(letter) else -0.5


def _cyrillic(text: str) -> float:
    """The mean value of Cyrillic letters; capitals inside words count against it."""
    ranks = {letter: 1.0 - place / len(_CYRILLIC) * 0.7 for place, letter in enumerate(_CYRILLIC)}
    ranks.update(dict.fromkeys(_CYRILLIC_MORE, 0.5))
    total, count = 0.0, 0
    for before, letter, after in zip(f" {text}", text, f"{text[1:]} "):
        if letter > "\x7f":
            count += 1
            rank = ranks.get(letter.lower(), 0.0 if unicodedata.category(letter) in ("Pd", "Pi", "Pf") else -0.7)
            if letter.isupper() and before.isalpha():
                rank = -0.8 if before.islower() else rank * 0.5
            total += rank - (0.5 if _LETTER.match(before) or _LETTER.match(after) else 0.0)
    return total / count


def _european(text: str) -> float:
    """How European a text in Windows-1252 is: letters with accents among others, and typographic marks."""
    runs = [run[0] for run in _OUTSIDE.finditer(text)]
    letters = "".join(runs)
    if len(letters) > len(text) * 0.7 or any("\x80" <= letter <= "\x9f" for letter in letters):
        return -1.0
    value = sum((0.8 if run.isalpha() or run in "’‘“”–—…€£°§" else 0.35) if len(run) == 1 else _joined(run) for run in runs)
    rare = len(letters) <= max(1, _FEW * len(text))
    return value / len(letters) + (0.1 if rare else 0.0)


def _joined(run: str) -> float:
    """The value of several such signs in a row: `éé` and `”…` exist, `°×É«` does not."""
    if run.isalpha() and len(run) == 2 and run[1].islower():
        return 0.8
    return 0.6 * len(run) if all(sign in "’‘“”–—…«»¿¡\xa0" or sign.islower() for sign in run) and len(run) <= 3 else -0.5 * len(run)


_SCORES: dict[str, Callable[[str], float]] = {
    "cp1252": _european,
    "gbk": lambda text: _east(text, _chinese(_SIMPLIFIED, "gb2312")),
    "big5": lambda text: _east(text, _chinese(_TRADITIONAL, "big5")),
    "cp932": lambda text: _east(text, _japanese),
    "euc_jp": lambda text: _east(text, _japanese),
    "cp949": lambda text: _east(text, _korean),
    "cp1251": _cyrillic,
    "koi8_r": _cyrillic,
}
