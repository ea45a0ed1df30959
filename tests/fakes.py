"""Stand-ins for what reality will not provoke: failing, slow and exhausted forward passes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Card
from server.inference.backend import Layout, OutOfMemory, TokenIds, pad
from server.inference.inputs import TextInputs
from server.inference.loader import Encoder
from server.inference.opening import Opener
from server.inference.probing import warm_up
from server.inference.tokenizer import Tokenizer
from server.settings import Settings

FAKE_DIM = 3
RAISES = 90  # token ids with a meaning for the fake
GIVES_NAN = 91
LOSES_ROWS = 92
KILLS_THREAD = 93


class EndlessTokenizer:
    """Never done with a text until it is told to stop."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.stopped = threading.Event()

    def encode_texts(
        self, inputs: TextInputs, *, stop: threading.Event, **limits: object
    ) -> list[TokenIds]:
        self.entered.set()
        if stop.wait(timeout=30):
            self.stopped.set()
        raise CancelledError


class FakeBackend:
    """Vectors that tell what was computed: (sum of ids, number of tokens, first id).

    Raises for a micro-batch that holds the token RAISES, gives NaN for one with GIVES_NAN, returns a
    vector too few for one with LOSES_ROWS, ends the thread for one with KILLS_THREAD, runs out of
    memory over `memory_tokens` padded tokens, raises for everything while `broken` is set,
    gives NaN for everything if it is `numb`, and waits for `gate` before each pass
    (and for one of the passes that `turnstile` allows, if there is one).
    """

    layout = Layout.PADDED
    concurrent_passes: int | None = None

    def __init__(self, *, memory_tokens: int | None = None, numb: bool = False) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.alone: list[bool] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken = threading.Event()
        self.entered = threading.Semaphore(0)
        self.turnstile: threading.Semaphore | None = None
        self._memory_tokens = memory_tokens
        self._numb = numb

    def forward(self, sequences: Sequence[TokenIds], *, alone: bool = False) -> NDArray[np.float32]:
        input_ids, attention_mask = pad(sequences)
        self.shapes.append(input_ids.shape)
        self.alone.append(alone)
        self.entered.release()
        assert self.gate.wait(timeout=30)
        assert self.turnstile is None or self.turnstile.acquire(timeout=30)
        if self._memory_tokens is not None and input_ids.size > self._memory_tokens:
            raise OutOfMemory("fake")
        if (input_ids == KILLS_THREAD).any():
            raise SystemExit
        if self.broken.is_set() or (input_ids == RAISES).any():
            raise RuntimeError("fake failure")
        ids = input_ids * attention_mask
        vectors = np.stack([ids.sum(1), attention_mask.sum(1), ids[:, 0]], axis=1)
        vectors = vectors.astype(np.float32)
        vectors[(input_ids == GIVES_NAN).any(axis=1) | self._numb] = np.nan
        return vectors[1:] if (input_ids == LOSES_ROWS).any() else vectors

    def count_embeddings(self, vocabulary_size: int) -> int:
        return vocabulary_size


class FakeOpener(Opener):
    """For every card the same forward pass; raises what `fails` holds."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer, backend: FakeBackend) -> None:
        super().__init__(settings)
        self._encoder = Encoder(tokenizer, (backend,), FAKE_DIM)
        self.fails: Exception | None = None

    def open_encoder(self, card: Card) -> Encoder:
        if self.fails is not None:
            raise self.fails
        warm_up(self._encoder)
        return self._encoder


class FakeSession:
    """An ONNX Runtime session that only notes that it was used."""

    def __init__(self, name: str, used: list[str]) -> None:
        self._name = name
        self._used = used

    def run(
        self, names: list[str], feeds: dict[str, NDArray[np.int64]]
    ) -> list[NDArray[np.float32]]:
        self._used.append(self._name)
        return [np.zeros((len(feeds["input_ids"]), FAKE_DIM), np.float32)]
