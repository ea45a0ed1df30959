"""The server process: listen, announce, drain on a signal, stop.

bind -> load (in the background) -> ready line -> SIGTERM or SIGINT -> no new work, what is in
flight is finished or, after `drain_timeout_s`, answered with 503 -> exit 0
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.server import HANDLED_SIGNALS

from server.access.access import Access
from server.engine.offering import Offering
from server.errors import StartupError
from server.http.app import create_app
from server.http.listening import BACKLOG, allow_many_connections, announce, bind
from server.http.protocol import BoundedProtocol
from server.http.waiting_room import WaitingRoom
from server.program.termination import ignore_stop_signals
from server.settings import Settings

log = logging.getLogger(__name__)

# After the drain only answers are left to send; a client that stalls its upload is cut then.
_CLOSE_TIMEOUT_S = 2
_LAST_WORDS_S = 0.2


def run_server(settings: Settings, offering: Offering, access: Access) -> None:
    """Serve until a signal; returns after a clean drain.

    Raises:
        StartupError: the server could not start, or its models could not be loaded.
    """
    failure: list[StartupError] = []

    def stop(error: StartupError) -> None:
        failure.append(error)
        server.should_exit = True

    def tell_ready() -> None:
        announce(settings, port, asks_for_keys=access.asks_for_keys)

    app = create_app(settings, offering, access, on_ready=tell_ready, on_failure=stop)
    allow_many_connections()
    listener = bind(settings.host, settings.port)
    port = listener.getsockname()[1]
    server = http_server(app, offering, settings)
    server.run(sockets=[listener])
    offering.join()
    if failure:
        raise failure[0]


def http_server(app: FastAPI, offering: Offering, settings: Settings) -> DrainingServer:
    """The application behind uvicorn, as this server wants it."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol.within(WaitingRoom.of(settings)),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_timeout_s,
        timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
        backlog=BACKLOG,
    )
    return DrainingServer(config, offering, settings.drain_timeout_s)


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which drains on the first signal and cuts the drain short on the second."""

    def __init__(self, config: uvicorn.Config, offering: Offering, drain_timeout_s: float) -> None:
        super().__init__(config)
        self._offering = offering
        self._drain_timeout_s = drain_timeout_s
        self._drain_deadline: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but once all is done the signals are ignored and not let through."""
        if threading.current_thread() is threading.main_thread():
            for number in HANDLED_SIGNALS:
                signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            ignore_stop_signals()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler; what uvicorn does is not wanted: it would exit by the signal."""
        if self._drain_deadline is None:
            log.info("%s: finishing work in flight", signal.Signals(sig).name)
        self.drain()

    def drain(self) -> None:
        """Take no new work and stop when all is done; the second call cuts that short."""
        if self._drain_deadline is not None:
            self._drain_deadline = time.monotonic()
            if self.should_exit and self._loop is not None:
                self._loop.call_soon_threadsafe(self._leave_slow_clients)
            return
        self._offering.drain()
        self._drain_deadline = time.monotonic() + self._drain_timeout_s

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second while serving; True stops."""
        self._loop = asyncio.get_running_loop()
        if self._drain_deadline is not None:
            if time.monotonic() >= self._drain_deadline:
                log.warning("drain timeout: %d requests are cut", len(self.server_state.tasks))
                self._offering.close()
                self.should_exit = True
            elif not self._offering.is_busy:
                # Slow readers of answers and slow writers of requests have the rest of the time.
                left_s = math.ceil(self._drain_deadline - time.monotonic())
                self.config.timeout_graceful_shutdown = max(left_s, _CLOSE_TIMEOUT_S)
                self.should_exit = True
        return await super().on_tick(counter)

    def _leave_slow_clients(self) -> None:
        """Answer those who stall their upload, then hang up on those who stall their reading."""
        for task in self.server_state.tasks:
            task.cancel()
        for connection in self.server_state.connections:
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, connection.transport.abort)
