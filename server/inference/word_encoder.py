"""Token ids of texts from the ids of their words, which are looked up instead of computed.

Tokenising costs a microsecond a word and a dictionary a tenth of it, and most words have been seen
before. This is only for tokenizers whose ids for a text are those of its words, one after the
other, wherever it is cut: at a blank, at a line feed, before and behind a mark. Why that is so:

- added tokens are looked for first. None has white space or a mark in it, so none lies across a
  cut. `lstrip` and `rstrip` take white space, which gives no token anyway. For `single_word` white
  space and marks beside a token are what a text's end is: no letter;
- BertNormalizer changes each character for itself, but for the order of combining marks. That
  order ends at white space and punctuation, which it leaves as they are;
- BertPreTokenizer cuts at white space, which it drops, and on both sides of ASCII punctuation;
- WordPiece divides each of these pieces for itself.

The library encodes the words that are not known, all in one text with a mark between them. Their
ids are what is between the mark's. Any thread may call.
"""

from __future__ import annotations

import itertools
import json
import time
from typing import NamedTuple, Self

import numpy as np
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing, RobertaProcessing, TemplateProcessing

from server.inference.backend import TokenIds
from server.inference.word_cache import MAX_WORD_CHARS, WordCache

# The most frequent in prose; each costs a look at every text.
MARKS = ",.-'\"()"
# Between marks a word costs the library 1.5 times what it costs inside of its text. So a text with
# more unknown words than this is encoded as a whole, and the words of few such texts are learned:
# texts of nothing but new words must not take much longer than without a cache.
MOST_UNKNOWN = 1 / 2
LEARNED_OF_MANY = 32  # one text of so many
# Looking up keeps the GIL, and a thread that waits for it takes it after 5 ms only. So it is given
# away between texts, and for longer than nothing: else it is taken back before that thread wakes.
CHARS_AT_ONCE = 16_384
A_MOMENT_S = 1e-6

_EMPTY = bytearray()  # what it joins may be written into, unlike bytes


class _Unfinished(NamedTuple):
    """A text with unknown words."""

    number: int  # of the text
    words: list[str]
    ids: list[bytes | None]  # of each word
    unknown: list[int]  # numbers of words

    @property
    def many(self) -> bool:
        return len(self.unknown) > MOST_UNKNOWN * len(self.words)


class WordEncoder:
    """A tokenizer that may be cut at `marks`; see `of`.

    Args:
        marks: punctuation that its added tokens do not contain; the first is in its vocabulary,
            and no other token has its id.
        prefix: ids in front of each text, int32.
        suffix: ids behind it, int32.
    """

    def __init__(self, rust: RustTokenizer, marks: str, prefix: TokenIds, suffix: TokenIds) -> None:
        self._rust = rust
        self._marks = [(mark, f" {mark} ") for mark in marks]
        self._between = f" {marks[0]} "
        (between,) = rust.encode(marks[0], add_special_tokens=False).ids
        self._between_id = np.int32(between)
        self._prefix, self._suffix = prefix.tobytes(), suffix.tobytes()
        self._cache = WordCache({"": b"", marks[0]: self._between_id.tobytes()})
        self._turns = itertools.count()

    @classmethod
    def of(cls, rust: RustTokenizer, prefix: TokenIds, suffix: TokenIds) -> Self | None:
        """The tokenizer, cut; None if its texts may not be what their words are."""
        model = rust.model
        if not (
            isinstance(model, WordPiece)
            and model.max_input_chars_per_word  # else even a mark is unknown
            and isinstance(rust.normalizer, BertNormalizer | None)
            and isinstance(rust.pre_tokenizer, BertPreTokenizer)
            and _puts_tokens_around(rust)
        ):
            return None
        added = _looked_for(rust)
        if any(not text or any(map(str.isspace, text)) for text in added):
            return None
        marks = "".join(mark for mark in MARKS if not any(mark in text for text in added))
        ids = list(rust.get_vocab().values())  # files may give one id to two tokens
        while marks and (
            marks[0] == model.unk_token or ids.count(rust.token_to_id(marks[0])) != 1  # type: ignore[arg-type]
        ):
            marks = marks[1:]
        return cls(rust, marks, prefix, suffix) if marks else None

    def encode(self, texts: list[str]) -> list[TokenIds]:
        """Ids of each text, int32, with those around it.

        Raises:
            BaseException: what the library raises, its panics among it.
        """
        found = []
        unfinished = []
        chars = 0
        for index, text in enumerate(texts):
            chars += len(text)
            if chars > CHARS_AT_ONCE:
                time.sleep(A_MOMENT_S)
                chars = 0
            words = self._cut(text)
            ids = self._cache.look_up(words)
            try:
                found.append(self._joined(ids))
            except TypeError:  # None among them
                most = MOST_UNKNOWN * len(words)
                unknown = self._cache.look_up_old(words, ids, most)
                if unknown:
                    unfinished.append(_Unfinished(index, words, ids, unknown))
                found.append(_EMPTY if unknown else self._joined(ids))
        if unfinished:
            self._finish(texts, unfinished, found)
        return [np.frombuffer(ids, dtype=np.int32) for ids in found]

    def _cut(self, text: str) -> list[str]:
        text = text.replace("\n", " ")
        for mark, apart in self._marks:
            text = text.replace(mark, apart)
        return text.split(" ")

    def _joined(self, ids: list[bytes | None]) -> bytearray:
        """Raises TypeError for None."""
        return _EMPTY.join([self._prefix, *ids, self._suffix])  # type: ignore[list-item]

    def _finish(
        self, texts: list[str], unfinished: list[_Unfinished], found: list[bytearray]
    ) -> None:
        whole = [text for text in unfinished if text.many]
        partly = [text for text in unfinished if not text.many]
        wanted = {text.words[number] for text in partly for number in text.unknown}
        for text in whole:
            if next(self._turns) % LEARNED_OF_MANY == 0:
                words = (text.words[number] for number in text.unknown)
                wanted.update(word for word in words if len(word) <= MAX_WORD_CHARS)
        asked = [texts[text.number] for text in whole]
        if wanted:
            asked.append(self._between.join(wanted))
        encodings = self._rust.encode_batch_fast(asked, add_special_tokens=False)
        ids = [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
        learned = self._divide(wanted, ids.pop()) if wanted else {}
        for text, own in zip(whole, ids, strict=True):
            found[text.number] = self._joined([own.tobytes()])
        for text in partly:
            for number in text.unknown:
                text.ids[number] = learned[text.words[number]]
            found[text.number] = self._joined(text.ids)
        self._cache.keep(learned)

    def _divide(self, words: set[str], ids: TokenIds) -> dict[str, bytes]:
        """The ids of each word, of those that all have with marks between them."""
        between = np.flatnonzero(ids == self._between_id) * ids.itemsize
        joined = ids.tobytes()
        starts = [0, *(between + ids.itemsize).tolist()]
        ends = [*between.tolist(), len(joined)]
        return {
            word: joined[start:end] for word, start, end in zip(words, starts, ends, strict=True)
        }


def _puts_tokens_around(rust: RustTokenizer) -> bool:
    processor = rust.post_processor
    if not isinstance(processor, TemplateProcessing):
        return isinstance(processor, BertProcessing | RobertaProcessing | None)
    single = json.loads(processor.__getstate__())["single"]
    return sum("Sequence" in piece for piece in single) == 1


def _looked_for(rust: RustTokenizer) -> list[str]:
    """Added tokens, as they are looked for in a text, and as they are in one not normalised."""
    added = rust.get_added_tokens_decoder().values()
    texts = [token.content for token in added]
    if rust.normalizer is not None:
        texts += [
            rust.normalizer.normalize_str(token.content) for token in added if token.normalized
        ]
    return texts
