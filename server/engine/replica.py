"""One worker thread: takes micro-batches from the queue and computes them.

Every sequence it takes gets a vector or an error, whatever the backend does, and the thread lives
on. Knows nothing of HTTP or of the event loop: results go to the `deliver` callback.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np

from server.engine.sequence import MicroBatch
from server.engine.waiting_queue import WaitingQueue
from server.inference.backend import Backend, OutOfMemory

log = logging.getLogger(__name__)


class NotFinite(Exception):
    """The backend gave NaN or infinity."""


class Replica(threading.Thread):
    """A daemon thread that works until its queue is closed."""

    def __init__(
        self,
        name: str,
        queue: WaitingQueue,
        backend: Backend,
        deliver: Callable[[MicroBatch], None],
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._queue = queue
        self._backend = backend
        self._deliver = deliver

    def run(self) -> None:
        while (micro_batch := self._queue.take()) is not None:
            self._compute(micro_batch)
            self._deliver(micro_batch)

    def _compute(self, micro_batch: MicroBatch) -> None:
        """Fill in each sequence's vector; bisect a failure until only the guilty one has it."""
        try:
            vectors = self._backend.forward(*micro_batch.padded())
            if not np.isfinite(vectors).all():
                raise NotFinite("the model gave a vector that is not finite")
            for sequence, vector in zip(micro_batch.sequences, vectors, strict=True):
                sequence.group.vectors[sequence.row] = vector
        except Exception as error:
            if isinstance(error, OutOfMemory):
                log.warning("out of memory; micro-batches lowered: %d", self._queue.lower_budget())
            if len(micro_batch) == 1:
                log.error("a sequence failed: %s", error, exc_info=error)
                micro_batch.sequences[0].error = error
                return
            for half in micro_batch.halves():
                self._compute(half)
