"""One worker thread: takes micro-batches from the queue and computes them.

Every sequence it takes gets a vector or an error, whatever the backend does, and the thread lives
on. Knows nothing of HTTP or of the event loop: results go to the `deliver` callback.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

import numpy as np

from server.engine.patience import PATIENCE, Patience
from server.engine.sequence import MicroBatch
from server.engine.waiting_queue import WaitingQueue
from server.inference.backend import Backend, OutOfMemory
from server.inference.probing import NotFinite, probe

log = logging.getLogger(__name__)

# After so many failures in a row the model is asked for what it could do at the start: an input
# that makes the model fail, sent again and again, must not make a sound server look broken.
FAILURES_BEFORE_PROBE = 3


class Replica(threading.Thread):
    """A daemon thread that works until its queue is closed.

    Args:
        deliver: gets each micro-batch whose sequences have their vectors or errors.
        died: called when the thread ends without being told to.
        device: which one's worker it is, for the queue.
        others_sound: whether another replica computes as it should; then this one, if it does not,
            leaves the work to it.
        patience: how long a pass may take, and when a model that fails is asked again.
    """

    def __init__(
        self,
        name: str,
        queue: WaitingQueue,
        backend: Backend,
        deliver: Callable[[MicroBatch], None],
        died: Callable[[Replica], None],
        *,
        device: int = 0,
        others_sound: Callable[[Replica], bool] = lambda replica: False,
        patience: Patience = PATIENCE,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._queue = queue
        self._backend = backend
        self._deliver = deliver
        self._died = died
        self._device = device
        self._others_sound = others_sound
        self._patience = patience
        self._failures = 0  # micro-batches in a row
        self._failing = False  # also on an input that is known to be good
        self._stuck_at_s = math.inf  # time.perf_counter()

    @property
    def sound(self) -> bool:
        """Alive, not stuck in a forward pass, and able to compute what it could at the start."""
        stuck = time.perf_counter() > self._stuck_at_s
        return self.is_alive() and not self._failing and not stuck

    def run(self) -> None:
        self._queue.add_worker(self._device)
        try:
            self._work()
        except BaseException:  # a thread that ends unseen would leave its requests hanging
            log.critical("%s died", self.name, exc_info=True)
            self._died(self)
        finally:
            self._queue.remove_worker(self._device)

    def _work(self) -> None:
        while not self._queue.closed:
            if self._failing and self._others_sound(self):
                self._queue.wait_until_closed(self._patience.probe_interval_s)
                self._probe()
                continue
            timeout_s = self._patience.probe_interval_s if self._failing else None
            micro_batch = self._queue.take(timeout_s, device=self._device)
            if micro_batch is None:
                if self._failing and not self._queue.closed:
                    self._probe()
                continue
            try:
                self._compute_all(micro_batch)
            finally:
                self._deliver(micro_batch)
            del micro_batch  # an idle worker must not keep the last request's vectors

    def _compute_all(self, micro_batch: MicroBatch) -> None:
        micro_batch.began_s = time.perf_counter()
        slowest_s = micro_batch.padded_tokens / self._patience.slowest_tokens_per_s
        limit_s = max(self._patience.stuck_after_s, slowest_s)
        self._stuck_at_s = micro_batch.began_s + limit_s
        try:
            self._compute(micro_batch, alone=micro_batch.alone)
        except BaseException as error:
            for sequence in micro_batch.sequences:
                sequence.error = error
            raise
        finally:
            self._stuck_at_s = math.inf
            micro_batch.ended_s = time.perf_counter()
        if any(sequence.error is None for sequence in micro_batch.sequences):
            self._failures = 0
            self._failing = False
        else:
            self._failures += 1
            if self._failures >= FAILURES_BEFORE_PROBE:
                self._probe()

    def _compute(self, micro_batch: MicroBatch, *, alone: bool, whole: bool = True) -> None:
        """Fill in each sequence's vector; bisect a failure until only the guilty one has it.

        Args:
            whole: it is as the queue gave it, not a part of that.
        """
        try:
            token_ids = [sequence.token_ids for sequence in micro_batch.sequences]
            vectors = self._backend.forward(token_ids, alone=alone)
            if not np.isfinite(vectors).all():
                raise NotFinite("the model gave a vector that is not finite")
            for sequence, vector in zip(micro_batch.sequences, vectors, strict=True):
                sequence.group.vectors[sequence.row] = vector
            return
        except Exception as error:
            if isinstance(error, OutOfMemory) and whole and len(micro_batch) > 1:
                budget = self._queue.lower_budget(micro_batch.padded_tokens)
                log.warning("out of memory; micro-batches of at most %d tokens now", budget)
            if len(micro_batch) == 1:
                log.error("a sequence failed: %s", error, exc_info=error)
                micro_batch.sequences[0].error = error
                return
        # Behind the handler, which keeps what the failed pass had in memory.
        for half in micro_batch.halves():
            self._compute(half, alone=False, whole=False)

    def _probe(self) -> None:
        """Find out whether the model still computes an input that it computed at the start."""
        self._stuck_at_s = time.perf_counter() + self._patience.stuck_after_s
        try:
            probe(self._backend)
        except Exception as error:
            log.error("the model fails on a known input: %s", error)
            self._failing = True
        else:
            if self._failing:
                log.warning("the model computes again")
            self._failing = False
            self._failures = 0
        finally:
            self._stuck_at_s = math.inf
