"""What routes ask for in their signatures."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from server.access.static_keys import StaticKeys
from server.engine.served_models import ServedModels
from server.errors import BodyTooLarge
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """Everything the routes work with; one a process, kept at `app.state.services`."""

    settings: Settings
    keys: StaticKeys
    models: ServedModels


async def services(request: Request) -> Services:
    """The process's services."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


ServicesDep = Annotated[Services, Depends(services)]


async def require_key(request: Request, found: ServicesDep) -> None:
    """Let the request in by its API key, before anybody looks at its body.

    Raises:
        AuthenticationFailed: the key is missing or unknown.
    """
    found.keys.check(request.headers.get("authorization"))


RequireKey = Depends(require_key)


async def read_body(request: Request, max_body_bytes: int) -> bytearray:
    """The whole body.

    Raises:
        BodyTooLarge: it is longer than allowed; a declared length is refused unread.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_body_bytes:
        raise BodyTooLarge(max_body_bytes)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_body_bytes:
            raise BodyTooLarge(max_body_bytes)
    return body


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
