"""Work by the text: equal texts of a request are computed once, so these differ."""

from __future__ import annotations


def different_texts(count: int, words: int) -> list[str]:
    """So many texts of so many words each, which MiniLM reads as one token each; no two are equal.

    There are no more than 2 ** words.
    """
    return [
        " ".join("text" if number >> bit & 1 else "word" for bit in range(words))
        for number in range(count)
    ]


def different_ids(count: int, length: int) -> list[list[int]]:
    """So many lists of so many token ids each; no two are equal, and none means a thing to a fake."""
    return [[100 + number, *[1] * (length - 1)] for number in range(count)]
