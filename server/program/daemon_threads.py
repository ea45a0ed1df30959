"""Blocking work off the event loop, in threads that never keep the program from ending.

`asyncio.to_thread` would be waited for at the end, and a pipe may never give its next line, or a
database its answer. Knows nothing of the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Job = Callable[[], Callable[[], Any]]  # does the work, and returns what tells its outcome


class DaemonThreads:
    """Threads for one kind of work: as many as are needed at a time.

    Work never waits for other work, which may hang. One thread without work is kept for the next,
    so that work that comes now and then starts no thread each time.

    Args:
        name: of each thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[SimpleQueue[_Job]] = []  # where each thread without work waits for some

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Begin the work in a thread; called in an event loop's thread.

        Returns:
            What it returns or raises. Cancelling this does not stop the work; its outcome is lost.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(outcome: Callable[[], None]) -> None:
            if not future.done():  # cancelled
                outcome()

        def job() -> Callable[[], object]:
            try:
                outcome = partial(future.set_result, work())
            except StopIteration as error:  # a future takes any other
                outcome = partial(future.set_exception, RuntimeError(repr(error)))
            except BaseException as error:
                outcome = partial(future.set_exception, error)
            return partial(loop.call_soon_threadsafe, settle, outcome)

        self._take_thread().put(job)
        return future

    def _take_thread(self) -> SimpleQueue[_Job]:
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        jobs: SimpleQueue[_Job] = SimpleQueue()
        threading.Thread(target=self._serve, args=(jobs,), name=self._name, daemon=True).start()
        return jobs

    def _serve(self, jobs: SimpleQueue[_Job]) -> None:
        keep = True
        while keep:
            tell = jobs.get()()
            # Before the outcome is told: who hears of it may have more work at once.
            keep = not self._idle
            if keep:
                self._idle.append(jobs)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                tell()
            del tell  # it would keep the outcome in memory until there is more work
