"""A tokenizer by words, beside the library's own pass over each text."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from server.inference.backend import TokenIds
from server.inference.word_encoder import WordEncoder


def read_tokenizer(path: Path) -> Tokenizer:
    """Without what a file says of padding and cutting."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as in a server
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class BothWays:
    """One that puts a token in front of each text, and one behind it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        prefix, suffix = np.split(np.asarray(tokenizer.encode("").ids, dtype=np.int32), 2)
        encoder = WordEncoder.of(tokenizer, prefix, suffix)
        assert encoder is not None
        self.encoder = encoder

    def by_words(self, texts: list[str]) -> list[TokenIds]:
        return self.encoder.encode(texts)

    def one_pass(self, texts: list[str]) -> list[TokenIds]:
        encodings = self.tokenizer.encode_batch_fast(texts)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def differing(self, texts: list[str]) -> list[str]:
        """Texts whose ids are not equal, while words are new or when they are known."""
        wrong = []
        for start in range(0, len(texts), 10):
            some = texts[start : start + 10]
            expected = [ids.tolist() for ids in self.one_pass(some)]
            for encoded in (self.by_words(some), self.by_words(some)):
                pairs = zip(some, encoded, expected, strict=True)
                wrong += [text for text, ids, other in pairs if ids.tolist() != other]
        return wrong
