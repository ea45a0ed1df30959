"""Work ends when its client leaves, and by nothing else."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect

from server.api import client_watch
from server.api.client_watch import ClientWatch
from server.engine.client_patience import is_left


class Client:
    """Stays until it is told to leave."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.watched = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        self.watched.set()
        await self.left.wait()
        return {"type": "http.disconnect"}

    def request(self) -> Request:
        return Request({"type": "http"}, self.receive)


async def test_work_of_a_client_that_leaves_is_cancelled() -> None:
    client = Client()

    async def work() -> None:
        async with ClientWatch(client.request()):
            client.left.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError as error:
                ends.append(error)
                raise

    ends: list[asyncio.CancelledError] = []
    with pytest.raises(ClientDisconnect):
        await work()
    assert is_left(*ends)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_work_of_a_client_that_stays_comes_to_its_end() -> None:
    client = Client()
    async with ClientWatch(client.request()):
        await client.watched.wait()
    client.left.set()
    await asyncio.sleep(0)  # nobody watches any more


async def test_nobody_is_watched_whose_work_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_watch, "BEGIN_AFTER_S", 0)
    client = Client()
    async with ClientWatch(client.request()):
        pass
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0, later.set)  # behind a watch's begin, if there is one
    await later.wait()
    await asyncio.sleep(0)
    assert not client.watched.is_set()


async def test_other_errors_and_cancellations_stay_what_they_are() -> None:
    client = Client()
    with pytest.raises(ZeroDivisionError):
        async with ClientWatch(client.request()):
            raise ZeroDivisionError
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001), ClientWatch(client.request()):
            await asyncio.sleep(30)


async def test_who_leaves_while_the_server_cancels_too_does_not_undo_that() -> None:
    client = Client()
    begun = asyncio.Event()

    async def work() -> None:
        async with ClientWatch(client.request()):
            await client.watched.wait()
            begun.set()
            await asyncio.sleep(30)

    working = asyncio.create_task(work())
    await begun.wait()
    client.left.set()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_a_request_leaves_no_garbage_behind() -> None:
    gc.collect()
    gc.disable()
    try:
        client = Client()
        watch = ClientWatch(client.request())
        found = weakref.ref(watch._request)
        async with watch:
            await client.watched.wait()
        del watch, client
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert found() is None
    finally:
        gc.enable()
