"""Text to the token ids one model reads, exactly counted.

Owns the model's tokenizer; knows nothing of queues, HTTP or keys. Any thread may call: what the
library computes releases the GIL, and nothing is kept but words seen lately.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Self

import numpy as np

# The tokenizers library would start a thread a core, which would take them from the workers.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer as RustTokenizer

from server.catalog.card import TOKENIZER_FILE, Card
from server.errors import (
    ContextLengthExceeded,
    EmbeddingServerError,
    InferenceFailed,
    InvalidRequest,
    ModelLoadError,
    TooManyTokens,
    first_line,
)
from server.inference.backend import TokenIds
from server.inference.inputs import TextInputs, TokenIdInputs
from server.inference.long_texts import LONG_TEXT_CHARS, encode_windows
from server.inference.word_encoder import WordEncoder
from server.program.rust_panics import is_panic, panics_as_errors

log = logging.getLogger(__name__)

# How much is encoded between two looks at the request's token limit; a longer text comes alone.
CHUNK_CHARS = 4 * LONG_TEXT_CHARS


def use_all_cores() -> None:
    """Encode many texts on all cores from now on; for machines whose cores do not compute."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # the library looks at each call


class Tokenizer:
    """One model's tokenizer with its length limit.

    Raises:
        ModelLoadError: the file is not a tokenizer, or one that a text cannot be cut for.
    """

    def __init__(self, path: Path, max_input_tokens: int) -> None:
        try:
            with panics_as_errors():
                self._rust = RustTokenizer.from_file(str(path))
                # Files often carry their training's settings (MiniLM's pads and cuts to 128).
                self._rust.no_padding()
                self._rust.no_truncation()
                around = tokens_around(self._rust)
        except Exception as error:  # the library raises bare Exception
            raise ModelLoadError(f"tokenizer {path}: {first_line(error)}") from error
        self.max_input_tokens = max_input_tokens
        self._added = self._rust.get_added_tokens_decoder()  # whose ids may leave a gap
        own = self._rust.get_vocab_size(with_added_tokens=False)
        self.vocabulary_size: int = max([own, *(token_id + 1 for token_id in self._added)])
        if around is None:
            raise ModelLoadError(f"tokenizer {path}: does more than put tokens around a text")
        if sum(map(len, around)) >= max_input_tokens:
            raise ModelLoadError(
                f"tokenizer {path}: {max_input_tokens} tokens leave no room beside special ones"
            )
        self._prefix, self._suffix = (np.asarray(ids, dtype=np.int32) for ids in around)
        self._words = WordEncoder.of(self._rust, self._prefix, self._suffix)

    @classmethod
    def of(cls, card: Card) -> Self:
        """The tokenizer of a card that has no base; its bytes are not compared with the card."""
        return cls(card.path(TOKENIZER_FILE), card.max_input_tokens)

    def encode_texts(
        self,
        inputs: TextInputs,
        *,
        prompt: str,
        truncate: bool,
        max_request_tokens: int,
        stop: threading.Event | None = None,
    ) -> list[TokenIds]:
        """Token ids of each text with special tokens and `prompt` in front, in input order.

        Time and memory are bounded whatever a text holds; see `long_texts` for how far a text over
        LONG_TEXT_CHARS has the ids that one pass over all of it would give.

        Args:
            truncate: cut what is over `max_input_tokens` (special tokens stay) or refuse it.
            max_request_tokens: most tokens of all texts together, counted after the cut.
            stop: set from elsewhere when nobody waits for the outcome any more.

        Raises:
            CancelledError: `stop` was set.
            ContextLengthExceeded: a text is too long and `truncate` is off.
            TooManyTokens: all texts together are too long.
            InferenceFailed: the library fails on a text; names its position.
        """
        encoded: list[TokenIds] = []
        total = 0
        stop = stop or threading.Event()
        for chunk in _chunks(inputs.texts):
            if stop.is_set():
                raise CancelledError
            if len(chunk) == 1 and len(chunk[0]) > LONG_TEXT_CHARS:
                enough = self.max_input_tokens if truncate else max_request_tokens
                with self._failing_at(inputs.position(len(encoded))):
                    sequences = [self._encode_long(prompt + chunk[0], enough, stop)]
            else:
                prompted = [prompt + text for text in chunk] if prompt else chunk
                try:
                    sequences = self._encode_short(prompted)
                except BaseException as error:  # the library's own errors, and its panics
                    if isinstance(error, Exception) or is_panic(error):
                        self._find_guilty(prompted, inputs, len(encoded))
                    raise
            for token_ids in sequences:
                position = inputs.position(len(encoded))
                if len(token_ids) > max_request_tokens and not truncate:
                    raise TooManyTokens(max_request_tokens=max_request_tokens, position=position)
                encoded.append(self._fit(token_ids, truncate, position))
                total += len(encoded[-1])
                if total > max_request_tokens:
                    raise TooManyTokens(max_request_tokens=max_request_tokens, position=position)
        return encoded

    def read_token_ids(
        self, inputs: TokenIdInputs, *, truncate: bool, max_request_tokens: int
    ) -> list[TokenIds]:
        """Ids of the model's own vocabulary, read as they are: no special token is added.

        Raises:
            InvalidRequest: an id is outside the vocabulary; names its position.
            ContextLengthExceeded, TooManyTokens: as `encode_texts`.
        """
        sequences: list[TokenIds] = []
        total = 0
        for index, ids in enumerate(inputs.token_ids):
            position = inputs.position(index)
            for where, token_id in enumerate(ids):
                if token_id >= self.vocabulary_size:
                    raise InvalidRequest(
                        f"{position}[{where}]: token id {token_id} is not in the model's "
                        f"vocabulary of {self.vocabulary_size}.",
                        param="input",
                    )
            token_ids = np.asarray(ids, dtype=np.int32)
            sequences.append(self._fit(token_ids, truncate, position))
            total += len(sequences[-1])
            if total > max_request_tokens:
                raise TooManyTokens(max_request_tokens=max_request_tokens, position=position)
        return sequences

    def token(self, token_id: int) -> str:
        """How the vocabulary writes a token; empty if it has none with this id."""
        if token_id in self._added:
            return self._added[token_id].content  # as it was added, not as it is normalised
        return self._rust.id_to_token(token_id) or ""

    def tokens_from(self, token_id: int) -> dict[int, str]:
        """All tokens with this id or a higher one, in order; ids may leave gaps of any size."""
        ids = self._rust.get_vocab(with_added_tokens=True).values()
        return {i: token for i in sorted(ids) if i >= token_id and (token := self.token(i))}

    @property
    def around_ids(self) -> tuple[int, ...]:
        """Ids that are around every text, e.g. of [CLS] and [SEP]."""
        return (*self._prefix.tolist(), *self._suffix.tolist())

    def _encode_short(self, texts: list[str]) -> list[TokenIds]:
        if self._words is not None:
            return self._words.encode(texts)
        encodings = self._rust.encode_batch_fast(texts)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _fit(self, token_ids: TokenIds, truncate: bool, position: str) -> TokenIds:
        if len(token_ids) <= self.max_input_tokens:
            return token_ids
        if not truncate:
            raise ContextLengthExceeded(
                position=position,
                num_tokens=len(token_ids),
                max_input_tokens=self.max_input_tokens,
            )
        kept = self.max_input_tokens
        suffix = self._suffix
        if len(suffix) and np.array_equal(token_ids[-len(suffix) :], suffix):
            return np.concatenate((token_ids[: kept - len(suffix)], suffix))
        return token_ids[:kept]

    @contextlib.contextmanager
    def _failing_at(self, position: str) -> Iterator[None]:
        """Tell where a text is on which the library fails; it lives on."""
        try:
            with panics_as_errors():
                yield
        except (EmbeddingServerError, CancelledError):
            raise
        except Exception as error:  # the library raises bare Exception
            log.error("the tokenizer fails on a text")  # the text may be in what the library says
            raise InferenceFailed(
                f"{position}: the model's tokenizer fails on this text: {first_line(error)}",
                param="input",
            ) from error

    def _find_guilty(self, texts: list[str], inputs: TextInputs, first: int) -> None:
        """Encode texts one by one, of which the first is at `first`, and raise at the guilty one."""
        for index, text in enumerate(texts, first):
            with self._failing_at(inputs.position(index)):
                self._rust.encode_batch_fast([text])

    def _encode_long(self, text: str, enough: int, stop: threading.Event) -> TokenIds:
        """Ids of a long text; what lies behind the first `enough` tokens may be left out."""
        parts = [self._prefix]
        total = len(self._prefix) + len(self._suffix)
        for ids in encode_windows(self._rust, text, self._longest_token):
            if stop.is_set():
                raise CancelledError
            parts.append(np.asarray(ids, dtype=np.int32))
            total += len(ids)
            if total > enough:
                break
        return np.concatenate((*parts, self._suffix))

    @functools.cached_property
    def _longest_token(self) -> int:
        """Characters of the vocabulary's longest token; looking takes 0.3 s in a large one."""
        return max(map(len, self._rust.get_vocab()))


def tokens_around(tokenizer: RustTokenizer) -> tuple[list[int], list[int]] | None:
    """Ids that are put in front of each text (e.g. of [CLS]) and behind it ([SEP]).

    None if the tokenizer does more to a text than that.
    """
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    starts = (i for i in range(len(full)) if bare and full[i : i + len(bare)] == bare)
    start = next(starts, None)
    return None if start is None else (full[:start], full[start + len(bare) :])


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    """Texts in order, about CHUNK_CHARS a chunk; a text over LONG_TEXT_CHARS comes alone."""
    chunk: list[str] = []
    chars = 0
    for text in texts:
        alone = len(text) > LONG_TEXT_CHARS
        if chunk and (alone or chars + len(text) > CHUNK_CHARS):
            yield chunk
            chunk, chars = [], 0
        chunk.append(text)
        chars += len(text)
        if alone:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk
