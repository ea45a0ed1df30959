"""Large bodies are read one after the other, in threads: many at once would silence the event loop.

Reading 32 MiB takes about 0.1 s. Between two of them the event loop has its turn.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from server.api.schemas import RequestBody
from server.api.seats import SHORT_BYTES, Seat

Body = TypeVar("Body", bound=RequestBody)


class LargeBodies:
    """The two threads: what is short does not wait for what is huge."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._thread_of_huge = ThreadPoolExecutor(1, thread_name_prefix="read-huge")

    async def read(
        self, schema: type[Body], body: bytearray, seat: Seat, *, max_request_tokens: int
    ) -> Body:
        """The body, looked at before anything is made of it.

        Raises:
            ApiError: see `Outline.of`, `Outline.read`, `RequestBody.of` and `Seats.change`.
        """
        thread = self._thread_of_huge if len(body) > SHORT_BYTES else self._thread
        run = asyncio.get_running_loop().run_in_executor
        outline = await run(
            thread, lambda: schema.outline(body, max_request_tokens=max_request_tokens)
        )
        seat.hold(len(body) + outline.object_bytes)
        asked = await run(thread, lambda: schema.of(outline.read()))
        seat.hold(outline.object_bytes)  # the body itself goes
        return asked
