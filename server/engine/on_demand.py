"""Something that is loaded when it is first needed, once for all who wait for it.

Lives in the event loop's thread. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from server.errors import ApiError, Draining, ModelLoadFailed, StartupError
from server.program.unseen_failures import ignore_failure

log = logging.getLogger(__name__)

# Reading gigabytes again for each request to a model that cannot be loaded would take the machine.
RETRY_LOAD_S = 5.0

Resident = TypeVar("Resident")


class OnDemand(Generic[Resident]):
    """A value that comes and goes; who stops waiting for it leaves its load to the others.

    Args:
        model: what it belongs to, for the log and for clients.
        load: makes one attempt.
    """

    def __init__(self, model: str, load: Callable[[], Coroutine[Any, Any, Resident]]) -> None:
        self.value: Resident | None = None
        self.on_change: Callable[[], None] = lambda: None  # called when it has come or gone
        self._model = model
        self._load = load
        self._attempt: asyncio.Task[Resident] | None = None
        self._failed_s = -math.inf  # the loop's time
        self._closed = False

    @property
    def under_way(self) -> bool:
        """Whether it is being loaded."""
        return self._attempt is not None

    @property
    def has_failed(self) -> bool:
        """Whether it could not be loaded when it was last asked for."""
        return self._failed_s > -math.inf

    async def get(self) -> Resident:
        """The value, as soon as it is there.

        Raises:
            ModelLoadFailed: it cannot be loaded; the log says why.
            Draining: it was closed meanwhile.
        """
        if self.value is not None:
            return self.value
        if self._closed:
            raise Draining
        if self._attempt is None:
            pause_s = self._failed_s + RETRY_LOAD_S - asyncio.get_running_loop().time()
            if pause_s > 0:
                raise ModelLoadFailed(self._model, retry_after_s=pause_s)
            self._attempt = asyncio.create_task(self._try())
            self._attempt.add_done_callback(ignore_failure)
        try:
            return await asyncio.shield(self._attempt)
        except asyncio.CancelledError:
            if self._closed:
                raise Draining from None
            raise

    async def load(self) -> Resident:
        """Load it for a caller who wants to know what is wrong, not to try again.

        Raises:
            Exception: what the load raises.
        """
        value = self.value = await self._load()
        self._failed_s = -math.inf
        self.on_change()
        return value

    def forget(self) -> Resident | None:
        """Give the value away, so that the next who needs it loads it again."""
        value, self.value = self.value, None
        self.on_change()
        return value

    def close(self) -> None:
        """Answer those who wait with Draining; nothing is loaded any more."""
        self._closed = True
        if self._attempt is not None:
            self._attempt.cancel()

    async def _try(self) -> Resident:
        try:
            return await self.load()
        except ApiError:  # of something that this one needs, which has told it and waits itself
            raise
        except Exception as error:
            self._failed_s = asyncio.get_running_loop().time()
            if isinstance(error, StartupError):
                log.error("loading failed: %s", error.message)
            else:
                log.exception("loading model %s failed", self._model)
            raise ModelLoadFailed(self._model, retry_after_s=RETRY_LOAD_S) from None
        finally:
            self._attempt = None
