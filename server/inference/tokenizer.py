"""Text to the token ids one model reads, exactly counted.

Owns the model's tokenizer; knows nothing of queues, HTTP or keys. Any thread may call: encoding
releases the GIL and keeps no state.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np

# The tokenizers library would start a thread a core, which would take them from the workers.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer as RustTokenizer

from server.errors import ContextLengthExceeded, InvalidRequest, ModelLoadError, TooManyTokens
from server.inference.backend import TokenIds
from server.inference.inputs import TextInputs, TokenIdInputs

# Longer texts are encoded slice by slice, so that a body of one huge text cannot take gigabytes.
SLICE_CHARS = 65_536
# As a slice is never cut inside a word, this bounds it; its tokens may take 0.5 kB a character.
MAX_RUN_CHARS = 4 * SLICE_CHARS
# How much is encoded between two looks at the request's token limit.
CHUNK_CHARS = 4 * SLICE_CHARS
# Between two words, tokenizers of every family cut before the blank as they would without a cut.
_WORD_GAP = re.compile(r"(?<=[^\W_]) (?=[^\W_])")
_CUT_WINDOW_CHARS = 4096
_WHITE_SPACE = re.compile(r"\s")


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
            self._rust = RustTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelLoadError(f"tokenizer {path}: {error}") from error
        # Files often carry their training's settings (MiniLM's pads and cuts to 128).
        self._rust.no_padding()
        self._rust.no_truncation()
        self.max_input_tokens = max_input_tokens
        self.vocabulary_size: int = self._rust.get_vocab_size(with_added_tokens=True)
        bare = self._rust.encode("a", add_special_tokens=False).ids
        full = self._rust.encode("a", add_special_tokens=True).ids
        starts = (i for i in range(len(full)) if bare and full[i : i + len(bare)] == bare)
        start = next(starts, None)
        if start is None:
            raise ModelLoadError(f"tokenizer {path}: does more than put tokens around a text")
        if len(full) - len(bare) >= max_input_tokens:
            raise ModelLoadError(
                f"tokenizer {path}: {max_input_tokens} tokens leave no room beside special ones"
            )
        self._prefix = np.asarray(full[:start], dtype=np.int32)  # e.g. [CLS]
        self._suffix = np.asarray(full[start + len(bare) :], dtype=np.int32)  # e.g. [SEP]

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

        Args:
            truncate: cut what is over `max_input_tokens` (special tokens stay) or refuse it.
            max_request_tokens: most tokens of all texts together, counted after the cut.
            stop: set from elsewhere when nobody waits for the outcome any more.

        Raises:
            InvalidRequest: a text has more than MAX_RUN_CHARS characters without white space.
            CancelledError: `stop` was set.
            ContextLengthExceeded: a text is too long and `truncate` is off.
            TooManyTokens: all texts together are too long.
        """
        encoded: list[TokenIds] = []
        total = 0
        stop = stop or threading.Event()
        for chunk in _chunks(inputs.texts):
            if stop.is_set():
                raise CancelledError
            if len(chunk) == 1 and len(chunk[0]) > SLICE_CHARS:
                enough = self.max_input_tokens if truncate else max_request_tokens
                position = inputs.position(len(encoded))
                sequences = [self._encode_slices(prompt + chunk[0], enough, position, stop)]
            else:
                prompted = [prompt + text for text in chunk] if prompt else chunk
                sequences = [
                    np.asarray(encoding.ids, dtype=np.int32)
                    for encoding in self._rust.encode_batch_fast(prompted)
                ]
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

    def _encode_slices(
        self, text: str, enough: int, position: str, stop: threading.Event
    ) -> TokenIds:
        """Ids of a huge text; what lies behind the first `enough` tokens may be left out."""
        parts = [self._prefix]
        total = len(self._prefix) + len(self._suffix)
        for piece in _slices(text):
            if stop.is_set():
                raise CancelledError
            if len(piece) > MAX_RUN_CHARS:
                raise InvalidRequest(
                    f"{position} has more than {MAX_RUN_CHARS} characters without white space.",
                    param="input",
                )
            ids = self._rust.encode_batch_fast([piece], add_special_tokens=False)[0].ids
            parts.append(np.asarray(ids, dtype=np.int32))
            total += len(ids)
            if total > enough:
                break
        return np.concatenate((*parts, self._suffix))


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    """Texts in order, about CHUNK_CHARS a chunk; a text over SLICE_CHARS comes alone."""
    chunk: list[str] = []
    chars = 0
    for text in texts:
        alone = len(text) > SLICE_CHARS
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


def _slices(text: str) -> Iterator[str]:
    """The text in pieces of about SLICE_CHARS, cut where no tokenizer notices, if there is one."""
    start = 0
    while len(text) - start > SLICE_CHARS:
        end = start + SLICE_CHARS
        window = text[end - _CUT_WINDOW_CHARS : end]
        gaps = [match.start() for match in _WORD_GAP.finditer(window)]
        blanks = gaps or [i for i, char in enumerate(window) if char.isspace() and i]
        if blanks:
            end -= _CUT_WINDOW_CHARS - blanks[-1]
        else:  # a cut inside a word would make two of it
            blank = _WHITE_SPACE.search(text, end)
            end = blank.start() if blank else len(text)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
