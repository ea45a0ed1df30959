"""Texts encoded by their words against the library's own pass over each: the ids, and the CPU time.

    python -m scripts.prove.words                    # minutes
    python -m scripts.prove.words --texts 10000 --characters 10000

Reads all-MiniLM-L6-v2's tokenizer.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as RustTokenizer

from scripts.benchmark.texts import make_requests
from scripts.prove.tables import options, print_table
from server.inference.backend import TokenIds
from server.inference.word_encoder import WordEncoder
from tests.inference.odd_texts import OddTexts

TOKENIZER = Path("models/all-MiniLM-L6-v2/tokenizer.json")
TEXTS, WORDS = 64, 60
TURNS = 40


class BothWays:
    """One tokenizer, by words and text by text."""

    def __init__(self, path: Path = TOKENIZER) -> None:
        self.rust = RustTokenizer.from_file(str(path))
        self.rust.no_padding()
        self.rust.no_truncation()
        prefix, suffix = np.split(np.asarray(self.rust.encode("").ids, dtype=np.int32), 2)
        cut = WordEncoder.of(self.rust, prefix, suffix)
        assert cut is not None
        self.by_words = cut.encode

    def whole(self, texts: list[str]) -> list[TokenIds]:
        """The ids of each text by one pass over it."""
        encodings = self.rust.encode_batch_fast(texts)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def differing(self, texts: list[str]) -> list[str]:
        """Texts whose ids are not equal, while words are new or when they are known."""
        wrong = []
        for start in range(0, len(texts), 10):
            some = texts[start : start + 10]
            expected = [ids.tolist() for ids in self.whole(some)]
            for ids in (self.by_words(some), self.by_words(some)):
                pairs = zip(some, ids, expected, strict=True)
                wrong += [text for text, own, other in pairs if own.tolist() != other]
        return wrong

    def cpu_ms(self, draw: Callable[[int], list[str]]) -> tuple[float, float]:
        """Median CPU milliseconds of a request, whole and by words, in turn."""
        ways = (self.whole, self.by_words)
        taken: tuple[list[float], list[float]] = ([], [])
        for turn in range(2 * TURNS):
            texts = draw(turn)
            for way in (0, 1) if turn % 2 else (1, 0):
                start = time.thread_time()
                ways[way](texts)
                taken[way].append(1000 * (time.thread_time() - start))
        return statistics.median(taken[0][TURNS:]), statistics.median(taken[1][TURNS:])


def around_each(characters: int) -> list[str]:
    """Texts in which every character, or so many, is before and behind each kind of cut."""
    every = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    return [f"a{c} {c}b,{c}-{c}\n{c}" for c in every[: characters or None]]


def new_words(seed: int) -> list[str]:
    """Words of random letters, which nobody has seen."""
    drawn = random.Random(seed)
    words = [
        "".join(drawn.choices("etaoinshrdlu", k=drawn.randint(5, 9))) for _ in range(WORDS * TEXTS)
    ]
    return [" ".join(words[start::TEXTS]) for start in range(TEXTS)]


def main() -> None:
    """Compare, and time."""
    given = options(__doc__, texts=100_000, characters=0, seed=0)
    both = BothWays()
    odd = OddTexts(given.seed, ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"])
    drawn = {
        "drawn at random": [odd.draw() for _ in range(given.texts)],
        "around each character": around_each(given.characters),
    }
    rows = ((name, len(texts), len(both.differing(texts))) for name, texts in drawn.items())
    print_table(["texts", "count", "ids differ"], rows)
    both = BothWays()
    mixed = make_requests("mixed", "words", 2 * TURNS, texts=TEXTS)
    queries = make_requests("query", "words", 2 * TURNS, texts=1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of the library's own are not counted
    timed: dict[str, Callable[[int], list[str]]] = {
        f"{TEXTS} mixed texts of the benchmark": mixed.__getitem__,
        "a query": queries.__getitem__,
        f"{TEXTS} texts of {WORDS} words, all of them new": new_words,
    }
    print_table(
        ["request", "whole: CPU ms", "by words: CPU ms"],
        ((name, *(f"{ms:.3f}" for ms in both.cpu_ms(draw))) for name, draw in timed.items()),
    )


if __name__ == "__main__":
    main()
