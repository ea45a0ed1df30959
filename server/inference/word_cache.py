"""Ids of the words that a tokenizer has seen lately, in bounded memory.

Words are kept in two generations. A full young one becomes the old one, and the old one is dropped.
A word that is found in the old one moves to the young one. Any thread may call; looking words up
takes no lock. All API keys share them, so the time that tokenising takes tells one client whether
another has sent a word lately.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping

# Of both generations: about 40,000 words.
MAX_BYTES = 8_388_608
# Longer words are seldom seen again.
MAX_WORD_CHARS = 64
# What an entry takes in a dictionary that has just grown.
ENTRY_BYTES = 100


class WordCache:
    """Words and their ids, int32, as bytes: many of these are joined fastest.

    Args:
        always: words that are known from the start and never forgotten.
    """

    def __init__(self, always: Mapping[str, bytes]) -> None:
        self._always = always
        self._young, self._old = dict(always), dict(always)
        self._young_bytes = 0
        self._lock = threading.Lock()  # of writers

    def look_up(self, words: list[str]) -> list[bytes | None]:
        """The ids of each; None: look into the old generation, too."""
        return list(map(self._young.get, words))

    def look_up_old(self, words: list[str], found: list[bytes | None], most: float) -> list[int]:
        """Fill in what `look_up` has not found, and tell the numbers of those that nobody knows.

        Args:
            most: give up when more than so many are unknown.
        """
        unknown = []
        moved = {}
        old = self._old
        for number in [number for number, ids in enumerate(found) if ids is None]:
            word = words[number]
            found[number] = ids = old.get(word)
            if ids is None:
                unknown.append(number)
                if len(unknown) > most:
                    break
            else:
                moved[word] = ids
        if moved:
            self.keep(moved)
        return unknown

    def keep(self, words: Mapping[str, bytes]) -> None:
        """Know these words from now on; long ones are not kept."""
        with self._lock:
            for word, ids in words.items():
                if len(word) > MAX_WORD_CHARS or word in self._young:
                    continue
                self._young[word] = ids
                self._young_bytes += sys.getsizeof(word) + sys.getsizeof(ids) + ENTRY_BYTES
                if self._young_bytes > MAX_BYTES / 2:
                    self._old, self._young = self._young, dict(self._always)
                    self._young_bytes = 0
