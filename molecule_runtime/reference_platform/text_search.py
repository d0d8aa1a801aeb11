"""Full text for every script: what of a text goes into an index, and how well a text answers a query. Pure.

A query matches a text that holds all its pieces, in any order and whatever their case:
- a word of three letters and more where a word of the text begins with it, a shorter one as a whole word;
- a run of a script that sets no spaces between words (Chinese, Japanese, Thai ...) or glues particles to them (Korean)
  anywhere, as a substring;
- a symbol such as an emoji anywhere. ASCII symbols and punctuation only separate.

An index cannot look for substrings, so a text is indexed by terms: the beginnings of its words, and the single
characters and pairs of its unspaced runs. They find candidates; `Query.score` judges the text itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

SHORTEST_PREFIX = 3
"""Letters that a word of a query needs to find longer words: two letters begin too many of them."""
LONGEST_PREFIX = 32
"""Letters of a word that the index knows; what a longer word of a query adds is judged on the text. Words of a language
are shorter, and so are most ids, of which many may begin alike."""
SATURATION = 1.2
LENGTH_SHARE = 0.75
"""How the score grows with the occurrences and falls with the length of a text: k1 and b of BM25."""
USUAL_CHARS = 300
"""A text of so many characters counts as neither short nor long: a paragraph."""
PREFIX_WEIGHT = 0.5
"""What the beginning of a longer word counts, against 1 for the whole word."""
MOST_OCCURRENCES = 32
"""Occurrences of a word that are looked for: more of them hardly change the score."""

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\uac00-\ud7ff"  # Hangul
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\U0001b000-\U0001b16f"  # kana
    "\u3105-\u312f\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Bopomofo, Han
)
_ACCENTS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff"  # Latin, Greek, Cyrillic
_MARKS = (  # combine with letters, and Python's \w leaves them out
    _ACCENTS
    + "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed"  # Hebrew, Arabic
    "\u0900-\u0963\u0966-\u0dff"  # the scripts of India, letters and all, without their full stops
)
_IN_A_WORD = rf"(?![{_UNSPACED}_])[\w{_MARKS}]"
_PIECE = re.compile(rf"[{_UNSPACED}]+|(?:{_IN_A_WORD})+|[^\x00-\x7f\s]")
_WORD_CHARACTER = re.compile(_IN_A_WORD)
_LOOSE_ACCENTS = re.compile(rf"(?<!{_IN_A_WORD})[{_ACCENTS}]+")
"""Those that stand on no letter: a composed text has them where the text had a symbol such as a macron of its own."""
_FIRST_UNSPACED = re.compile(f"[{_UNSPACED}]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]+")
"""Soft hyphens, joiners and variation selectors: two texts that look alike find each other."""


def folded(text: str) -> str:
    """The text without differences that nobody looks for: case, width, composition, invisible characters."""
    if text.isascii():
        return text.lower()
    composed = unicodedata.normalize("NFKC", text)
    caseless = composed.casefold()
    # Without case a letter may consist of two that compose anew.
    alike = caseless if caseless == composed else unicodedata.normalize("NFKC", caseless)
    return _LOOSE_ACCENTS.sub("", _INVISIBLE.sub("", alike))


def index_terms(text: str) -> set[str]:
    """All terms of a text. Letters and digits of ASCII, and any character beyond ASCII, are all they consist of."""
    terms: set[str] = set()
    for piece in set(_pieces(folded(text))):
        if _FIRST_UNSPACED.match(piece):
            terms.update(piece)
            terms.update(_pairs(piece))
        elif len(piece) < SHORTEST_PREFIX:
            terms.add(piece)
        else:
            terms.update(piece[:length] for length in range(SHORTEST_PREFIX, min(len(piece), LONGEST_PREFIX) + 1))
    return terms


@dataclass(frozen=True)
class Query:
    """What somebody looks for. `terms`, those that are likely the rarest first, are in the index of every match."""

    pieces: tuple[str, ...]
    terms: tuple[str, ...]
    phrase: str

    @classmethod
    def parse(cls, text: str) -> Query | None:
        """None when there is nothing in it that an index could know, such as punctuation alone."""
        whole = folded(text)
        # The longest first: it is likely the rarest, so that a text which does not match is given up soon.
        pieces = tuple(sorted(dict.fromkeys(_pieces(whole)), key=len, reverse=True))
        terms = dict.fromkeys(term for piece in pieces for term in _needed(piece))
        return cls(pieces, tuple(terms), " ".join(whole.split())) if pieces else None

    def score(self, text: str) -> float | None:
        """How well a text answers, above 0 and at most 1; None when a piece is not in it."""
        looked_in = folded(text)
        weight = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * len(looked_in) / USUAL_CHARS)
        score = 0.0
        for piece in self.pieces:
            occurrences = _occurrences(piece, looked_in)
            if not occurrences:
                return None
            score += occurrences / (occurrences + weight) / len(self.pieces)
        if len(self.pieces) > 1 and self.phrase in looked_in:
            score = (1 + score) / 2
        return max(round(score, 6), 1e-6)


def _pieces(text: str) -> Iterator[str]:
    for piece in _PIECE.findall(text):
        # Beyond ASCII a single character may be a letter, a symbol, or punctuation that only separates.
        if len(piece) > 1 or piece.isascii() or unicodedata.category(piece)[0] in "LNS":
            yield piece


def _needed(piece: str) -> list[str]:
    """The terms that a text with this piece of a query has."""
    if _FIRST_UNSPACED.match(piece):
        return _pairs(piece) or [piece]
    return [piece[:LONGEST_PREFIX]]


def _pairs(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)]


def _occurrences(piece: str, text: str) -> float:
    if not _WORD_CHARACTER.match(piece):
        return text.count(piece)
    prefix_weight = PREFIX_WEIGHT if len(piece) >= SHORTEST_PREFIX else 0.0
    found = 0.0
    at = text.find(piece)
    while at >= 0 and found < MOST_OCCURRENCES:
        end = at + len(piece)
        if at == 0 or not _WORD_CHARACTER.match(text, at - 1):
            found += prefix_weight if _WORD_CHARACTER.match(text, end) else 1.0
        at = text.find(piece, end)
    return found
