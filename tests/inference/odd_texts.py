"""Texts that a tokenizer may treat otherwise than those before."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections import defaultdict
from random import Random

_PROSE = (
    "the The naïve weather-proof don't 12,345.67 (see) e.g. https://a.b/c?d=e_f ﬁne ǅ İstanbul "
    "Straße ΌΣΟΣ 東京 とうきょう 한국어 ภาษาไทย עברית العربية हिन्दी 👩\u200d👩\u200d👧 🇩🇪 ẋ̣"
)
_WORDS = [*_PROSE.split(), "b" * 120]
# Python's and Rust's white space, what only looks like it, and what is none to either.
_SPACES: list[str] = [
    *" \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2009\u2028\u2029\u202f\u205f\u3000",
    *"\u180e\u200b\u200c\u200d\u2060\ufeff\xad\0\ufffd",
]
_MARKS: list[str] = [
    *"\u0300\u0301\u0323\u0345\u093e\u09be\u0d4e\u0f72\u302e\u3099\u1161\u11a8\ufe0f\u20e3"
]
_PUNCTUATION: list[str] = [*",.-'\"()[]<>_|/:;!?…—「」\u037e\u0387\u1fef\u2026"]


@functools.cache
def _by_category() -> list[list[str]]:
    """All characters but surrogates, category by category."""
    found = defaultdict(list)
    for code in range(sys.maxunicode + 1):
        found[unicodedata.category(chr(code))].append(chr(code))
    del found["Cs"]
    return list(found.values())


class OddTexts:
    """Drawn one after the other.

    Args:
        special: strings to be strewn in, such as added tokens.
    """

    def __init__(self, seed: int, special: list[str]) -> None:
        self._random = Random(seed)
        self._categories = _by_category()
        self._special = special

    def draw(self) -> str:
        pieces = [self._piece() for _ in range(self._random.randint(1, 12))]
        return self._random.choice(["", "", " "]).join(pieces)

    def _piece(self) -> str:
        random = self._random
        kind = random.randrange(8)
        if kind == 0:
            return random.choice(random.choice(self._categories))
        if kind == 1:
            return random.choice(_SPACES) * random.choice([1, 1, 1, 3])
        if kind == 2:
            return random.choice(_MARKS) + random.choice(["", random.choice(_MARKS)])
        if kind == 3:
            return random.choice(_PUNCTUATION)
        if kind == 4:
            return " "
        if kind == 5 and self._special:
            word = random.choice(self._special)
            return random.choice([word, word.upper(), f" {word} ", word[:-1]])
        return random.choice(_WORDS)


def around_each_character() -> list[str]:
    """Texts in which one character is before and behind each kind of cut."""
    every = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    return [f"a{c} {c}b,{c}-{c}\n{c}" for c in every]


def new_words(seed: int, texts: int, words: int) -> list[str]:
    """So many texts of so many words, all of random letters."""
    drawn = Random(seed)
    made = (
        ["".join(drawn.choices("etaoinshrdlu", k=7)) for _ in range(words)] for _ in range(texts)
    )
    return [" ".join(text) for text in made]
