"""A port of its own for /metrics, which a firewall or a network policy can tell from the other.

It is served in the event loop of the server beside it, from that one's start until after its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from server.api.services import Services
from server.http.app import create_metrics_app
from server.http.connection_limit import FewConnections
from server.http.listening import bind, tell_metrics_port
from server.http.patient_connection import LimitedState
from server.http.uvicorn_config import uvicorn_config
from server.http.waiting_room import WaitingRoom
from server.settings import Settings

MAX_CONNECTIONS = 16  # a scraper needs one


def bind_metrics(settings: Settings) -> socket.socket | None:
    """A socket that listens where the settings put /metrics, if that is a port of its own.

    Raises:
        AddressError: the address is in use, unknown or not allowed.
    """
    address = settings.metrics_address
    if address is None:
        return None
    listener = bind(*address)
    tell_metrics_port(address[0], listener.getsockname()[1])
    return listener


class MetricsServer(uvicorn.Server):
    """Serves /metrics on this socket and nothing else, until told to end."""

    def __init__(self, services: Services, listener: socket.socket) -> None:
        app = create_metrics_app(services)
        super().__init__(uvicorn_config(app, services.settings, lifespan="off"))
        state = LimitedState(WaitingRoom.of(services.settings))
        state.connection_limit = FewConnections(state.all_connections, MAX_CONNECTIONS)
        self.server_state = state
        self._listener = listener
        self._serving: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are for the server beside it."""
        yield

    def begin(self) -> None:
        """Serve in this event loop."""
        self._serving = asyncio.create_task(self.serve(sockets=[self._listener]))

    async def end(self) -> None:
        """Answer what has come, and close the port."""
        self.should_exit = True
        if self._serving is not None:
            await self._serving
