"""Work that ends early when the client who asked for it has left."""

from __future__ import annotations

import asyncio
from types import TracebackType

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.engine.client_patience import CLIENT_LEFT


class ClientWatch:
    """Cancels the work inside its context when the client disconnects; the body was read before.

    Leaving the context raises ClientDisconnect if the client left before the work was done.
    """

    __slots__ = ("_left", "_request", "_task", "_watching")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._left = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watching = asyncio.create_task(self._watch())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watching.cancel()
        del self._watching  # whose traceback leads back here: a cycle, garbage of each request
        if kind is asyncio.CancelledError and self._left and self._task.uncancel() == 0:
            raise ClientDisconnect from None

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._task.cancel(CLIENT_LEFT)
