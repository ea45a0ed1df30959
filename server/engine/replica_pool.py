"""The worker threads of one model: started together, replaced when they die, ended together.

Lives in the event loop's thread; replicas call in from threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from server.engine.patience import Patience
from server.engine.replica import Replica
from server.engine.sequence import MicroBatch
from server.engine.waiting_queue import WaitingQueue
from server.inference.backend import Backend


class ReplicaPool:
    """Replicas that take from one queue; needs a running event loop.

    Args:
        backends: one a device.
        deliver: see Replica.
        replaced: called for each thread that takes the place of a dead one.
        workers: threads of each device.
        patience: with the threads.

    Raises:
        RuntimeError: the system gives no more threads; the queue is closed.
    """

    def __init__(
        self,
        queue: WaitingQueue,
        backends: Sequence[Backend],
        deliver: Callable[[MicroBatch], None],
        replaced: Callable[[], None],
        *,
        workers: int,
        patience: Patience,
    ) -> None:
        self._queue = queue
        self._backends = backends
        self._deliver = deliver
        self._replaced = replaced
        self._workers = workers
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._replicas: list[Replica] = []
        try:
            for number in range(workers * len(backends)):
                self._replicas.append(self._start_replica(number))
        except RuntimeError:  # those that there are must end
            queue.close()
            raise

    @property
    def num_sound(self) -> int:
        """How many threads are alive and compute what they should."""
        return sum(replica.sound for replica in self._replicas)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the threads have ended, after the queue was closed; blocks.

        Args:
            timeout_s: for each of them; None waits for as long as it takes.

        Returns:
            Whether all have ended; then they keep nothing in memory.
        """
        for replica in self._replicas:
            replica.join(timeout_s)
        ended = not any(replica.is_alive() for replica in self._replicas)
        if ended:
            self._replicas.clear()  # they point back here
        return ended

    def _start_replica(self, number: int) -> Replica:
        device = number // self._workers
        replica = Replica(
            f"replica-{number}",
            self._queue,
            self._backends[device],
            self._deliver,
            self._replace_soon,
            device=device,
            others_sound=self._others_sound,
            patience=self._patience,
        )
        replica.start()
        return replica

    def _others_sound(self, replica: Replica) -> bool:
        """Called by a replica."""
        return any(other.sound for other in self._replicas if other is not replica)

    def _replace_soon(self, dead: Replica) -> None:
        """Called by a replica that dies: have another one take its place."""
        delay_s = self._patience.restart_delay_s
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._loop.call_later, delay_s, self._replace, dead)

    def _replace(self, dead: Replica) -> None:
        if not self._queue.closed:
            self._replaced()
            number = self._replicas.index(dead)
            self._replicas[number] = self._start_replica(number)
