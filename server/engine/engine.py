"""One encoder at work: tokenise, wait, compute, answer.

Lives in the event loop's thread; its replicas are threads of their own and come back to the loop
only through `call_soon_threadsafe`. Knows nothing of HTTP or keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.engine.admission import Admission, Ticket
from server.engine.client_patience import is_left
from server.engine.pace import Pace
from server.engine.patience import PATIENCE, Patience
from server.engine.ratio import Ratio
from server.engine.repeats import Repeats, fill_repeats, find_repeats
from server.engine.replica_pool import ReplicaPool
from server.engine.request_tokenizer import RequestTokenizer
from server.engine.sequence import SequenceGroup
from server.engine.settlement import Settlement
from server.engine.waiting_queue import WaitingQueue
from server.errors import Draining, TokenWithoutEmbedding
from server.inference.backend import TokenIds
from server.inference.inputs import Inputs
from server.inference.loader import Encoder
from server.metrics import EngineMetrics

# Memory that nobody has written to comes slowly: 2,048 vectors of 384 numbers take 4 ms.
THREAD_FROM_REPEATS = 256


class Embedded(NamedTuple):
    """What a request's texts became, and the time it took."""

    vectors: NDArray[np.float32]  # (sequences, embedding_dim)
    wait_s: float  # until its first sequence was taken by a worker
    compute_s: float  # from there until its last one was done


class Engine:
    """An encoder with its queue and worker threads; needs a running event loop.

    Args:
        pace: how its devices want their work.
        max_request_tokens: most tokens all inputs of one request may hold together.
        max_queue_tokens, max_wait_s: see Admission.
        patience: with its workers.
    """

    def __init__(
        self,
        encoder: Encoder,
        metrics: EngineMetrics,
        *,
        pace: Pace,
        max_request_tokens: int,
        max_queue_tokens: int,
        max_wait_s: float,
        patience: Patience = PATIENCE,
    ) -> None:
        self._encoder = encoder
        self._repeated_sequences = metrics.repeated_sequences
        workers = pace.workers * len(encoder.backends)
        self._queue = WaitingQueue(pace, encoder.backends[0].layout)
        speed = Ratio(workers * pace.tokens_per_second, weight=0.1)
        self._admission = Admission(
            max_queue_tokens=max_queue_tokens, max_wait_s=max_wait_s, tokens_per_second=speed
        )
        self._tokenizer = RequestTokenizer(encoder.tokenizer, max_request_tokens=max_request_tokens)
        self._replicas = ReplicaPool(
            self._queue,
            encoder.backends,
            Settlement(self._queue, speed, metrics, workers=workers).deliver,
            metrics.replica_restarts.inc,
            workers=pace.workers,
            patience=patience,
        )
        metrics.watch(
            queue_tokens=lambda: self._queue.tokens,
            queue_sequences=lambda: len(self._queue),
            admitted_tokens=lambda: self._admission.tokens,
            tokens_per_second=lambda: speed.value,
            replicas_alive=lambda: self._replicas.num_sound,
        )

    @property
    def sound(self) -> bool:
        """Whether at least one worker is alive and computes what it should."""
        return self._replicas.num_sound > 0

    @contextlib.asynccontextmanager
    async def admit(self, inputs: Inputs, key: str) -> AsyncIterator[Ticket]:
        """Let a request in, by an estimate of its tokens, for as long as the context lasts.

        Gives the ticket that `embed` wants. Never waits: asynchronous, since it may be elsewhere.

        Args:
            key: whose share of the machine the request uses.

        Raises:
            Overloaded: it would wait too long.
        """
        with self._admission.admit(key, self._tokenizer.estimate(inputs)) as ticket:
            yield ticket

    def admit_tokens(self, tokens: int, key: str) -> Ticket:
        """As `admit`, for a request whose tokens are counted already; raises Overloaded."""
        return self._admission.admit(key, tokens)

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
        return await self._tokenizer.tokenize(
            inputs, prompt=prompt, truncate=truncate, own_token_ids=own_token_ids
        )

    async def embed(self, token_ids: Sequence[TokenIds], ticket: Ticket) -> Embedded:
        """One vector a sequence, in the order given.

        Equal sequences are computed once. So they wait in the queue once, too, and their ticket and
        their key's share of the machine count them once.

        A caller that is cancelled takes its waiting sequences with it.

        Args:
            ticket: from `admit`.

        Raises:
            TokenWithoutEmbedding: the weights lack a token; nothing is computed.
            InferenceFailed: the model failed on one of the sequences.
            Draining: the engine was closed before all were computed.
        """
        self._check_embeddings(token_ids)
        repeats = find_repeats(token_ids)
        group = SequenceGroup(token_ids, self._encoder.embedding_dim, ticket, repeats)
        ticket.correct(group.num_tokens)
        began_s = time.perf_counter()
        self._queue.put(group)
        try:
            vectors = await group.future
        except BaseException as error:
            if is_left(error):
                ticket.client_left()
            self._queue.drop(group)
            raise
        finally:
            group.release_sequences()
        if repeats:
            await self._fill(vectors, repeats)
        return Embedded(vectors, group.began_s - began_s, time.perf_counter() - group.began_s)

    async def _fill(self, vectors: NDArray[np.float32], repeats: Repeats) -> None:
        if len(repeats) < THREAD_FROM_REPEATS:
            fill_repeats(vectors, repeats)
        else:
            await asyncio.to_thread(fill_repeats, vectors, repeats)
        self._repeated_sequences.inc(len(repeats))

    def close(self) -> None:
        """Answer what still waits with Draining and let the worker threads end."""
        for group in self._queue.close():
            if not group.future.done():
                group.future.set_exception(Draining())
        self._tokenizer.close()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the worker threads have ended, each after at most one micro-batch.

        A thread that is inside ONNX Runtime while the interpreter ends would abort the process.

        Args:
            timeout_s: for each of them; None waits for as long as it takes.

        Returns:
            Whether all have ended; then nothing but its owner keeps the engine in memory.
        """
        self._tokenizer.join()
        return self._replicas.join(timeout_s)

    def _check_embeddings(self, token_ids: Sequence[TokenIds]) -> None:
        """Here, where all ways to a vector meet: front ends know the tokenizer alone."""
        most = self._encoder.num_embeddings
        if most is None or np.concatenate(token_ids).max(initial=0) < most:
            return
        row, token_id = next(
            (row, int(ids.max())) for row, ids in enumerate(token_ids) if ids.max(initial=0) >= most
        )
        token = self._encoder.tokenizer.token(token_id)
        raise TokenWithoutEmbedding(row=row, token=token, token_id=token_id, num_embeddings=most)
