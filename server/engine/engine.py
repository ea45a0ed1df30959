"""One encoder at work: tokenise, wait, compute, answer.

Lives in the event loop's thread; its replicas are threads of their own and come back to the loop
only through `call_soon_threadsafe`. Knows nothing of HTTP or keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.engine.admission import Admission, Ticket
from server.engine.fair_share import MIN_COST_TOKENS
from server.engine.pace import Pace
from server.engine.patience import PATIENCE, Patience
from server.engine.ratio import Ratio
from server.engine.replica import Replica, probe
from server.engine.request_tokenizer import RequestTokenizer
from server.engine.sequence import MicroBatch, SequenceGroup
from server.engine.waiting_queue import WaitingQueue
from server.errors import Draining, InferenceFailed, TokenWithoutEmbedding
from server.inference.backend import TokenIds
from server.inference.inputs import Inputs
from server.inference.loader import Encoder
from server.metrics import EngineMetrics


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
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._workers_per_device = pace.workers
        self._patience = patience
        workers = pace.workers * len(encoder.backends)
        self._queue = WaitingQueue(pace, packed=encoder.backends[0].packs)
        self._tokens_per_second = Ratio(workers * pace.tokens_per_second, weight=0.1)
        self._admission = Admission(
            max_queue_tokens=max_queue_tokens,
            max_wait_s=max_wait_s,
            tokens_per_second=self._tokens_per_second,
        )
        self._tokenizer = RequestTokenizer(encoder.tokenizer, max_request_tokens=max_request_tokens)
        self._replicas: list[Replica] = []
        try:
            for number in range(workers):
                self._replicas.append(self._start_replica(number))
        except RuntimeError:  # the system gives no more threads: those that there are must end
            self._queue.close()
            raise
        metrics.watch(
            queue_tokens=lambda: self._queue.tokens,
            queue_sequences=lambda: len(self._queue),
            admitted_tokens=lambda: self._admission.tokens,
            tokens_per_second=lambda: self._tokens_per_second.value,
            replicas_alive=lambda: sum(replica.sound for replica in self._replicas),
        )

    @property
    def sound(self) -> bool:
        """Whether at least one worker is alive and computes what it should."""
        return any(replica.sound for replica in self._replicas)

    def admit(self, inputs: Inputs, key: str) -> Ticket:
        """Let a request in, by an estimate of its tokens; leaving the ticket's context ends it.

        Args:
            key: whose share of the machine the request uses.

        Raises:
            Overloaded: it would wait too long.
        """
        return self._admission.admit(key, self._tokenizer.estimate(inputs))

    def admit_tokens(self, tokens: int, key: str) -> Ticket:
        """As `admit`, for a request whose tokens are counted already."""
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

        A caller that is cancelled takes its waiting sequences with it.

        Args:
            ticket: from `admit`.

        Raises:
            TokenWithoutEmbedding: the weights lack a token; nothing is computed.
            InferenceFailed: the model failed on one of the sequences.
            Draining: the engine was closed before all were computed.
        """
        self._check_embeddings(token_ids)
        group = SequenceGroup(token_ids, self._encoder.embedding_dim, ticket)
        ticket.correct(group.num_tokens)
        began_s = time.perf_counter()
        self._queue.put(group)
        try:
            vectors = await group.future
        except BaseException:
            self._queue.drop(group)
            raise
        finally:
            group.release_sequences()
        return Embedded(vectors, group.began_s - began_s, time.perf_counter() - group.began_s)

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
        for replica in self._replicas:
            replica.join(timeout_s)
        self._tokenizer.join()
        ended = not any(replica.is_alive() for replica in self._replicas)
        if ended:
            self._replicas.clear()  # they point back here
        return ended

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

    def _deliver(self, micro_batch: MicroBatch) -> None:
        """Called by a replica: hand a computed micro-batch over to the event loop."""
        try:
            self._loop.call_soon_threadsafe(self._settle, micro_batch)
        except RuntimeError:
            if not self._loop.is_closed():  # closed: the process is ending, nobody waits
                raise

    def _settle(self, micro_batch: MicroBatch) -> None:
        self._measure(micro_batch)
        for group, part in micro_batch.parts.items():
            group.remaining -= len(part.sequences)
            group.began_s = min(group.began_s, micro_batch.began_s)
            if group.future.done():
                continue
            group.ticket.computed(part.tokens)
            failed = next((one for one in part.sequences if one.error is not None), None)
            if failed is not None:
                self._queue.drop(group)
                group.future.set_exception(
                    InferenceFailed(
                        f"The model failed on input[{failed.row}]; the other inputs are not at "
                        "fault. Trying again is safe."
                    )
                )
            elif group.remaining == 0:
                group.future.set_result(group.vectors)

    def _measure(self, micro_batch: MicroBatch) -> None:
        tokens = micro_batch.tokens
        failed = sum(sequence.error is not None for sequence in micro_batch.sequences)
        seconds = micro_batch.ended_s - micro_batch.began_s
        if not failed:  # a failure is no speed
            # A pass that had the machine to itself is not repeated by each worker.
            workers = 1 if micro_batch.alone else len(self._replicas)
            cost = max(tokens, MIN_COST_TOKENS)  # a short query alone tells little of the speed
            self._tokens_per_second.observe(cost * workers, seconds)
        metrics = self._metrics
        metrics.batch_sequences.observe(len(micro_batch))
        metrics.batch_tokens.observe(micro_batch.padded_tokens)
        metrics.batch_seconds.observe(seconds)
        metrics.computed_tokens.inc(tokens)
        metrics.padding_tokens.inc(micro_batch.padded_tokens - tokens)
        if failed:
            metrics.sequence_failures.inc(failed)

    def _start_replica(self, number: int) -> Replica:
        name = f"replica-{number}"
        device = number // self._workers_per_device
        replica = Replica(
            name,
            self._queue,
            self._encoder.backends[device],
            self._deliver,
            self._bury,
            device=device,
            others_sound=self._others_sound,
            patience=self._patience,
        )
        replica.start()
        return replica

    def _others_sound(self, replica: Replica) -> bool:
        """Called by a replica."""
        return any(other.sound for other in self._replicas if other is not replica)

    def _bury(self, replica: Replica) -> None:
        """Called by a replica that dies: have another one take its place."""
        delay_s = self._patience.restart_delay_s
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._loop.call_later, delay_s, self._replace, replica)

    def _replace(self, dead: Replica) -> None:
        if not self._queue.closed:
            self._metrics.replica_restarts.inc()
            number = self._replicas.index(dead)
            self._replicas[number] = self._start_replica(number)


def warm_up(encoder: Encoder) -> None:
    """Run a small forward pass on each device, so that the first request finds memory allocated.

    A larger one would spare the first large micro-batch 4 % of its time, and cost every start more.
    """
    for backend in encoder.backends:
        probe(backend)
