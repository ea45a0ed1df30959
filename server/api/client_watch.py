"""Work that ends early when the client who asked for it has left.

A watch is a task of its own, and costs as much as reading a short query. So it begins only when the
work has lasted for a while: whoever leaves before is noticed then.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.engine.client_patience import CLIENT_LEFT

BEGIN_AFTER_S = 0.01  # longer than a short query takes that is alone


class ClientWatch:
    """Cancels the work inside its context when the client disconnects; the body was read before.

    Leaving the context raises ClientDisconnect if the client left before the work was done.
    """

    __slots__ = ("_begin_later", "_left", "_request", "_task", "_watching")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._left = False
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        loop = asyncio.get_running_loop()
        self._begin_later = loop.call_later(BEGIN_AFTER_S, self._begin)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._begin_later.cancel()
        if self._watching is not None:
            self._watching.cancel()
            del self._watching  # whose traceback leads back here: a cycle, garbage of each request
        if kind is asyncio.CancelledError and self._left and self._task.uncancel() == 0:
            raise ClientDisconnect from None

    def _begin(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._task.cancel(CLIENT_LEFT)
