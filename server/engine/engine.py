"""One encoder at work: tokenise, wait, compute, answer.

Lives in the event loop's thread; its replicas are threads of their own and come back to the loop
only through `call_soon_threadsafe`. Knows nothing of HTTP or keys.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from server.engine.replica import Replica
from server.engine.sequence import MicroBatch, SequenceGroup
from server.engine.waiting_queue import WaitingQueue
from server.errors import Draining, InferenceFailed, TooManyTokens
from server.inference import cl100k
from server.inference.inputs import Inputs, TokenIdInputs
from server.inference.loader import Encoder
from server.inference.tokenizer import TokenIds

# Below this many characters, tokenising takes less time than the way to a thread and back.
INLINE_CHARS = 2_000
TOKENIZING_THREADS = 2  # so that one huge request does not keep the others waiting
# How many times `max_request_tokens` of OpenAI's ids are decoded when each input is then cut.
DECODED_BEFORE_CUT = 4
# (sequences, tokens). A larger one would spare the first large micro-batch 4 % of its time, and
# cost every start more than that.
WARM_UP_SHAPE = (1, 16)


class Engine:
    """An encoder with its queue and worker threads; needs a running event loop.

    Args:
        threads: number of worker threads.
        max_batch_tokens: token budget of a micro-batch, padding counted.
        max_request_tokens: most tokens all inputs of one request may hold together.
    """

    def __init__(
        self, encoder: Encoder, *, threads: int, max_batch_tokens: int, max_request_tokens: int
    ) -> None:
        self._encoder = encoder
        self._max_request_tokens = max_request_tokens
        self._loop = asyncio.get_running_loop()
        self._queue = WaitingQueue(max_batch_tokens)
        self._tokenizing = ThreadPoolExecutor(TOKENIZING_THREADS, thread_name_prefix="tokenize")
        self._replicas = [
            Replica(f"replica-{number}", self._queue, encoder.backend, self._deliver)
            for number in range(threads)
        ]
        for replica in self._replicas:
            replica.start()

    async def tokenize(
        self, inputs: Inputs, *, prompt: str, truncate: bool, own_token_ids: bool
    ) -> list[TokenIds]:
        """The token ids that the model will read, one array an input, in input order.

        Args:
            prompt: put in front of each text; not used with the model's own token ids.
            own_token_ids: ids in the input are the model's own, not OpenAI's cl100k_base.

        Raises:
            InvalidRequest: an id is unknown, an input or all of them are too long.
        """
        stop = threading.Event()
        encode = functools.partial(
            self._tokenize,
            inputs,
            prompt=prompt,
            truncate=truncate,
            own_token_ids=own_token_ids,
            stop=stop,
        )
        if not isinstance(inputs, TokenIdInputs) and sum(map(len, inputs.texts)) <= INLINE_CHARS:
            return encode()
        try:
            return await self._loop.run_in_executor(self._tokenizing, encode)
        finally:
            stop.set()  # cancelled: the thread goes to those who still wait

    async def embed(self, token_ids: Sequence[TokenIds]) -> NDArray[np.float32]:
        """One vector a sequence, (sequences, embedding_dim) float32, in the order given.

        A caller that is cancelled takes its waiting sequences with it.

        Raises:
            InferenceFailed: the model failed on one of the sequences.
            Draining: the engine was closed before all were computed.
        """
        group = SequenceGroup(token_ids, self._encoder.embedding_dim)
        self._queue.put(group)
        try:
            return await group.future
        except BaseException:
            self._queue.drop(group)
            raise

    def close(self) -> None:
        """Answer what still waits with Draining and let the worker threads end."""
        for group in self._queue.close():
            if not group.future.done():
                group.future.set_exception(Draining())
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait until the worker threads have ended, each after at most one micro-batch.

        A thread that is inside ONNX Runtime while the interpreter ends would abort the process.
        """
        for replica in self._replicas:
            replica.join()

    def _tokenize(
        self,
        inputs: Inputs,
        *,
        prompt: str,
        truncate: bool,
        own_token_ids: bool,
        stop: threading.Event,
    ) -> list[TokenIds]:
        tokenizer = self._encoder.tokenizer
        if isinstance(inputs, TokenIdInputs):
            if own_token_ids:
                return tokenizer.read_token_ids(
                    inputs, truncate=truncate, max_request_tokens=self._max_request_tokens
                )
            self._check_total(inputs, truncate=truncate)
            inputs = cl100k.decode(inputs)
        return tokenizer.encode_texts(
            inputs,
            prompt=prompt,
            truncate=truncate,
            max_request_tokens=self._max_request_tokens,
            stop=stop,
        )

    def _check_total(self, inputs: TokenIdInputs, *, truncate: bool) -> None:
        """Refuse too many of OpenAI's ids before they are decoded."""
        # What is cut away later does not count, but must not take memory without bound either.
        most = self._max_request_tokens * (DECODED_BEFORE_CUT if truncate else 1)
        total = 0
        for index, ids in enumerate(inputs.token_ids):
            total += len(ids)
            if total > most:
                raise TooManyTokens(max_request_tokens=most, position=inputs.position(index))

    def _deliver(self, micro_batch: MicroBatch) -> None:
        """Called by a replica: hand a computed micro-batch over to the event loop."""
        try:
            self._loop.call_soon_threadsafe(self._settle, micro_batch)
        except RuntimeError:
            if not self._loop.is_closed():  # closed: the process is ending, nobody waits
                raise

    def _settle(self, micro_batch: MicroBatch) -> None:
        for sequence in micro_batch.sequences:
            group = sequence.group
            group.remaining -= 1
            if group.future.done():
                continue
            if sequence.error is not None:
                self._queue.drop(group)
                group.future.set_exception(
                    InferenceFailed(
                        f"The model failed on input[{sequence.row}]; the other inputs are not at "
                        "fault. Trying again is safe."
                    )
                )
            elif group.remaining == 0:
                group.future.set_result(group.vectors)


def warm_up(encoder: Encoder) -> None:
    """Run a small forward pass, so that the first request finds memory allocated."""
    encoder.backend.forward(np.ones(WARM_UP_SHAPE, np.int64), np.ones(WARM_UP_SHAPE, np.int64))
