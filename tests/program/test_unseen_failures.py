from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from server.program.unseen_failures import ignore_failure


@pytest.mark.parametrize("ignored", [True, False])
def test_asyncio_does_not_complain_of_a_failure_that_is_ignored(ignored: bool) -> None:
    complaints: list[dict[str, Any]] = []

    async def fail_unseen() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        future: asyncio.Future[None] = loop.create_future()
        if ignored:
            future.add_done_callback(ignore_failure)
        future.set_exception(ValueError())
        await asyncio.sleep(0)
        del future
        gc.collect()

    asyncio.run(fail_unseen())
    assert len(complaints) == (not ignored)


def test_a_future_that_was_cancelled_is_none() -> None:
    async def cancel() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        ignore_failure(future)

    asyncio.run(cancel())
