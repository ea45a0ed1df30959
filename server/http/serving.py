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
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.server import HANDLED_SIGNALS

from server.access.access import Access
from server.api.services import Services
from server.engine.broken_models import BrokenModels
from server.engine.offering import Offering
from server.errors import EmbeddingServerError, GivenUp
from server.http.app import create_app
from server.http.connection_limit import HOW_TO_RAISE, ConnectionLimit
from server.http.listening import BACKLOG, allow_many_connections, announce, bind
from server.http.metrics_port import MetricsServer, bind_metrics
from server.http.patient_connection import LimitedState
from server.http.uvicorn_config import CLOSE_TIMEOUT_S, uvicorn_config
from server.http.waiting_room import WaitingRoom
from server.program.last_resort import end_within
from server.program.termination import ignore_stop_signals
from server.settings import Settings

log = logging.getLogger(__name__)

_LAST_WORDS_S = 0.2
_TICKS_A_SECOND = 10  # of uvicorn
# A process whose models do not compute any more ends within this, whatever hangs.
GIVEN_UP_END_S = 10.0


def run_server(settings: Settings, offering: Offering, access: Access) -> None:
    """Serve until a signal; returns after a clean drain.

    Raises:
        StartupError: the server could not start, or its models could not be loaded.
        GivenUp: a model does not compute any more.
    """
    failure: list[EmbeddingServerError] = []
    broken = BrokenModels(offering.models)

    def stop(error: EmbeddingServerError) -> None:
        failure.append(error)
        server.should_exit = True

    def look_at_models() -> None:
        if failure:
            return
        try:
            broken.count_second()
        except GivenUp as error:
            log.critical("%s", error.message)
            end_within(GIVEN_UP_END_S)
            offering.close()  # who waits for a vector gets an answer
            stop(error)

    def tell_ready() -> None:
        announce(settings, port, asks_for_keys=access.asks_for_keys)

    app = create_app(settings, offering, access, on_ready=tell_ready, on_failure=stop)
    allow_many_connections()
    listener = bind(settings.host, settings.port)
    port = listener.getsockname()[1]
    server = http_server(
        app,
        settings,
        on_second=look_at_models,
        metrics_listener=bind_metrics(settings),
    )
    server.run(sockets=[listener])
    offering.join()
    if failure:
        raise failure[0]


def http_server(
    app: FastAPI,
    settings: Settings,
    *,
    on_second: Callable[[], None],
    metrics_listener: socket.socket | None = None,
) -> DrainingServer:
    """The application behind uvicorn, as this server wants it.

    Args:
        on_second: called in its event loop once a second, or less often if that is held up.
        metrics_listener: where /metrics is, if it has a port of its own.
    """
    services: Services = app.state.services
    return DrainingServer(
        uvicorn_config(app, settings),
        services,
        on_second,
        None if metrics_listener is None else MetricsServer(services, metrics_listener),
    )


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which drains on the first signal and cuts the drain short on the second."""

    def __init__(
        self,
        config: uvicorn.Config,
        services: Services,
        on_second: Callable[[], None],
        metrics_server: MetricsServer | None,
    ) -> None:
        super().__init__(config)
        self._on_second = on_second
        self._metrics_server = metrics_server
        self._services, metrics = services, services.metrics
        state = LimitedState(WaitingRoom.of(services.settings))
        self._limit = state.connection_limit = ConnectionLimit(
            state.all_connections, self._accept, metrics.closed_idle_connections.inc
        )
        self.server_state = state
        metrics.open_connections.set_function(lambda: len(state.connections))
        metrics.max_connections.set_function(lambda: self._limit.max_connections)
        self._offering = services.models
        self._drain_timeout_s = services.settings.drain_timeout_s
        self._drain_deadline: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but that it only accepts while there is room."""
        await super().startup(sockets=[])
        for listener in sockets or ():
            await self._limit.open(listener)
            # Who holds a seat may stall, but not on every connection: others are to be answered.
            seats = max(1, self._limit.max_connections * 3 // 4)
            if self._services.seats.limit_to(seats):
                log.warning(
                    "the limit of open files allows %d connections, so that %d requests for "
                    "embeddings are answered at a time; %s",
                    self._limit.max_connections, seats, HOW_TO_RAISE,
                )  # fmt: skip
        if self._metrics_server is not None:
            self._metrics_server.begin()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; what can be seen of it can be seen until then."""
        self._limit.close()
        await super().shutdown(sockets=[])
        if self._metrics_server is not None:
            await self._metrics_server.end()

    async def _accept(self, listener: socket.socket) -> asyncio.AbstractServer:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        protocol = partial(make, self.config, self.server_state, self.lifespan.state)
        loop = asyncio.get_running_loop()
        return await loop.create_server(protocol, sock=listener, backlog=BACKLOG)

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
        if counter % _TICKS_A_SECOND == 0:
            self._on_second()
        if self._drain_deadline is not None:
            if time.monotonic() >= self._drain_deadline:
                if num_cut := len(self.server_state.tasks):
                    log.warning("drain timeout or second signal: %d requests are cut", num_cut)
                self._offering.close()
                self.should_exit = True
            elif not self._offering.is_busy:
                # Slow readers of answers and slow writers of requests have the rest of the time.
                left_s = math.ceil(self._drain_deadline - time.monotonic())
                self.config.timeout_graceful_shutdown = max(left_s, CLOSE_TIMEOUT_S)
                self.should_exit = True
        return await super().on_tick(counter)

    def _leave_slow_clients(self) -> None:
        """Answer those who stall their upload, then hang up on those who stall their reading."""
        for task in self.server_state.tasks:
            task.cancel()
        for connection in self.server_state.connections:
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, connection.transport.abort)
