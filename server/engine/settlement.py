"""What becomes of a computed micro-batch: its requests are answered and its speed is measured.

Workers hand it over; all else happens in the event loop's thread. Knows nothing of threads' lives.
"""

from __future__ import annotations

import asyncio

from server.engine.fair_share import MIN_COST_TOKENS
from server.engine.ratio import Ratio
from server.engine.sequence import MicroBatch
from server.engine.waiting_queue import WaitingQueue
from server.errors import InferenceFailed
from server.metrics import EngineMetrics


class Settlement:
    """Settles the micro-batches of one queue; needs a running event loop.

    Args:
        queue: what waits of a failed request is dropped there.
        tokens_per_second: of all workers together; follows what is measured.
        workers: how many there are.
    """

    def __init__(
        self,
        queue: WaitingQueue,
        tokens_per_second: Ratio,
        metrics: EngineMetrics,
        *,
        workers: int,
    ) -> None:
        self._queue = queue
        self._tokens_per_second = tokens_per_second
        self._metrics = metrics
        self._workers = workers
        self._loop = asyncio.get_running_loop()

    def deliver(self, micro_batch: MicroBatch) -> None:
        """Called by a worker: hand a computed micro-batch over to the event loop."""
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
            workers = 1 if micro_batch.alone else self._workers
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
