"""Asking a database off the event loop, which must not wait for one that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from server.access.database import PATIENCE_S
from server.errors import DatabaseError
from server.program.daemon_threads import DaemonThreads

# A database that hangs may not answer even that; then it counts as away.
NO_ANSWER_AFTER_S = 2 * PATIENCE_S

T = TypeVar("T")

_THREADS = DaemonThreads("database")


async def in_thread(
    work: Callable[[], T],
    *,
    then: Callable[[T], None] = lambda result: None,
    otherwise: Callable[[], None] = lambda: None,
) -> T:
    """Do something that asks a database, off the event loop.

    Args:
        then: called in the event loop with the result, also if nobody waits for it any more.
        otherwise: called there instead if the work has failed.

    Raises:
        DatabaseError: from the work, or there is no answer for too long.
    """

    def settle(done: asyncio.Future[T]) -> None:
        if done.exception() is None:
            then(done.result())
        else:
            otherwise()

    done = _THREADS.run(work)
    done.add_done_callback(settle)
    try:
        # Shielded: what has been begun comes to its end, whoever waits for it.
        return await asyncio.wait_for(asyncio.shield(done), NO_ANSWER_AFTER_S)
    except TimeoutError:
        raise DatabaseError(f"the database gives no answer for {NO_ANSWER_AFTER_S:g} s") from None
