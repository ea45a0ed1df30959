"""Windows of texts through an engine, one after another, in order.

One window is computed at a time, while the next one is fetched and tokenised. On a CPU a text has
its own bits. For a publisher's graph and on a GPU they may depend on the micro-batch: if the
engine's idle workers do not share what waits, that depends on the window alone, and the same texts
give the same bits in every run, whatever the number of threads. Lives in the engine's event loop;
knows nothing of files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.engine.admission import Ticket
from server.engine.engine import Engine
from server.inference.backend import TokenIds
from server.inference.inputs import TextInputs

W = TypeVar("W", bound=TextInputs)


class UnderWay(NamedTuple, Generic[W]):
    """A window that is being computed; may be looked at from any thread."""

    window: W
    num_tokens: int
    ticket: Ticket

    @property
    def computed_tokens(self) -> int:
        """How many of its tokens are computed."""
        return self.num_tokens - min(self.ticket.tokens, self.num_tokens)


class WindowRun(Generic[W]):
    """One pass over windows.

    Args:
        fetch: gives the next window; None at the end.
        prompt: put in front of each text.
        truncate: cut over-long texts or refuse them.
        naming: what is raised inside concerns this window, and is to name its texts.
        began: called when a window is about to be computed.
    """

    def __init__(
        self,
        engine: Engine,
        fetch: Callable[[], Awaitable[W | None]],
        *,
        prompt: str,
        truncate: bool,
        naming: Callable[[W], AbstractContextManager[None]],
        began: Callable[[UnderWay[W]], None] = lambda under_way: None,
    ) -> None:
        self._engine = engine
        self._fetch = fetch
        self._prompt = prompt
        self._truncate = truncate
        self._naming = naming
        self._began = began

    async def vectors(self) -> AsyncGenerator[tuple[W, NDArray[np.float32]], None]:
        """Each window with its vectors (texts, embedding_dim), as the encoder gives them.

        Raises:
            EmbeddingServerError: what `fetch` or `naming` raise; windows before it came out.
            Draining: the engine was closed.
        """
        ahead = asyncio.ensure_future(self._prepare())
        try:
            while (prepared := await ahead) is not None:
                ahead = asyncio.ensure_future(self._prepare())
                window, token_ids = prepared
                yield window, await self._compute(window, token_ids)
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _prepare(self) -> tuple[W, list[TokenIds]] | None:
        """The next window and its token ids; None at the end."""
        window = await self._fetch()
        if window is None:
            return None
        with self._naming(window):
            token_ids = await self._engine.tokenize(
                window, prompt=self._prompt, truncate=self._truncate, own_token_ids=False
            )
        return window, token_ids

    async def _compute(self, window: W, token_ids: list[TokenIds]) -> NDArray[np.float32]:
        async with self._engine.admit(window, key="") as ticket:
            self._began(UnderWay(window, sum(map(len, token_ids)), ticket))
            with self._naming(window):
                return (await self._engine.embed(token_ids, ticket)).vectors
