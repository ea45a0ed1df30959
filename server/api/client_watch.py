"""Work that ends early when the client who asked for it has left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.requests import ClientDisconnect


@contextlib.asynccontextmanager
async def abandoned_when_client_leaves(request: Request) -> AsyncIterator[None]:
    """Cancel the work inside when the client disconnects; the body must have been read before.

    Raises:
        ClientDisconnect: the client left before the work was done.
    """
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if left and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()
