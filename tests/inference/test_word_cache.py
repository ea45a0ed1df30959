from __future__ import annotations

import sys

import pytest

from server.inference import word_cache
from server.inference.word_cache import MAX_WORD_CHARS, WordCache


def look_up(cache: WordCache, *words: str) -> list[bytes | None]:
    found = cache.look_up(list(words))
    cache.look_up_old(list(words), found, len(words))
    return found


def test_what_is_kept_is_found_and_the_rest_is_told() -> None:
    cache = WordCache({"": b""})
    cache.keep({"a": b"1", "b": b"2"})
    words = ["a", "c", "", "b", "d"]
    found = cache.look_up(words)
    assert found == [b"1", None, b"", b"2", None]
    assert cache.look_up_old(words, found, 2) == [1, 4]
    assert cache.look_up_old(words, found, 0) == [1]


def test_a_long_word_is_not_kept() -> None:
    cache = WordCache({})
    cache.keep({"a" * MAX_WORD_CHARS: b"1", "a" * (MAX_WORD_CHARS + 1): b"2"})
    assert look_up(cache, "a" * MAX_WORD_CHARS, "a" * (MAX_WORD_CHARS + 1)) == [b"1", None]


def test_memory_is_bounded_and_words_in_use_are_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(word_cache, "MAX_BYTES", 200_000)
    cache = WordCache({",": b"0"})
    cache.keep({"used": b"1"})
    taken = []
    for number in range(5_000):
        cache.keep({f"word{number}é": bytes(number % 50)})
        assert look_up(cache, "used", ",") == [b"1", b"0"]
        if number % 50 == 0:
            taken.append(size(cache))
    assert look_up(cache, "word0é") == [None]
    assert look_up(cache, "word4999é") == [bytes(4_999 % 50)]
    assert word_cache.MAX_BYTES / 2 < max(taken) < word_cache.MAX_BYTES


def size(cache: WordCache) -> int:
    generations = (cache._young, cache._old)
    kept = [thing for words in generations for pair in words.items() for thing in pair]
    return sum(map(sys.getsizeof, (*generations, *kept)))
