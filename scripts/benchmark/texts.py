"""The texts of the benchmark: pseudo-English with the lengths that servers see, equal for all.

Every word of words.txt is one token of BERT's uncased vocabulary and so is the full stop, so a text's
token count is known without a tokenizer (the tests compare the two), and no server has to cut one.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random

# By falling frequency, about as in English; drawn as Zipf's law has it.
WORDS = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()
_CUMULATIVE = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(len(WORDS))))

SPECIAL_TOKENS = 2  # [CLS] and [SEP]
SENTENCE_WORDS = (12, 24)
EXACT_TOKENS = 128
# Least and most words of a text. 230 words are the most that 256 tokens surely hold.
_LENGTHS = {"query": (4, 12), "passage": (40, 120), "document": (150, 230)}
_MIXED_PERCENT = (40, 40, 20)  # of these three: what an index and its users send
KINDS = (*_LENGTHS, "mixed", "exact128")


def num_tokens(text: str) -> int:
    """Tokens of a text made here, special tokens included."""
    return text.count(" ") + 1 + text.count(".") + SPECIAL_TOKENS


def make_requests(kind: str, seed: str, count: int, *, texts: int) -> list[list[str]]:
    """`count` lists of `texts` texts; another seed gives other texts, the same seed the same.

    Args:
        kind: "query" (no full stop), "passage", "document", "mixed" of these, or "exact128": one
            sentence of 128 tokens, for comparing with a rate of matrix products.
    """
    random = Random(f"{kind} {seed}")
    return [[_text(kind, random) for _ in range(texts)] for _ in range(count)]


def _text(kind: str, random: Random) -> str:
    if kind == "exact128":
        return _sentence(random, EXACT_TOKENS - SPECIAL_TOKENS - 1)
    if kind == "mixed":
        (kind,) = random.choices(list(_LENGTHS), _MIXED_PERCENT)
    count = random.randint(*_LENGTHS[kind])
    return _words(random, count) if kind == "query" else _sentences(random, count)


def _words(random: Random, count: int) -> str:
    return " ".join(random.choices(WORDS, cum_weights=_CUMULATIVE, k=count))


def _sentence(random: Random, count: int) -> str:
    return _words(random, count).capitalize() + "."


def _sentences(random: Random, count: int) -> str:
    sentences = []
    while count:
        size = min(count, random.randint(*SENTENCE_WORDS))
        sentences.append(_sentence(random, size))
        count -= size
    return " ".join(sentences)
