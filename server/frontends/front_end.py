"""A front end: the whole HTTP server in a process of its own, but for the models' computing.

Obeys the engine process alone, by the channel: signals are blocked by who starts it. Ends when it
is told to, or when the engine process is gone.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable

import orjson

from server import logs
from server.access.access import Access
from server.catalog.registry import Registry, read_registry
from server.errors import CardError, StartupError
from server.frontends.channel import BadFrame, Channel, Kind, Parts, frame, receive_frame
from server.frontends.messages import Welcome, served_by
from server.frontends.remote_counters import RemoteCounters
from server.frontends.remote_models import RemoteModels
from server.frontends.summed_metrics import samples_of, summed_page
from server.http.app import create_app
from server.http.serving import http_server
from server.metrics import Metrics
from server.settings import Settings

log = logging.getLogger(__name__)

# Without the engine process nothing is left to do but last answers.
ORPHANED_TIMEOUT_S = 2.0


def run(stream: socket.socket, listener: socket.socket) -> None:
    """Be a front end until told to end.

    Args:
        stream: the channel to the engine process.
        listener: where requests come in.
    """
    first = receive_frame(stream)
    if first is None:  # the engine process is gone already
        return
    if first.kind is not Kind.WELCOME:
        raise BadFrame(f"a frame of kind {first.kind.name} in place of a welcome")
    welcome = Welcome.read(first.content)
    logs.configure(welcome.settings.log_level, welcome.settings.log_format)
    try:
        front_end = FrontEnd(welcome, stream, on_orphaned=_end_soon)
    except StartupError as error:
        stream.sendall(b"".join(frame(Kind.CANNOT_START, 0, (error.message.encode(),))))
        return
    front_end.run(listener)


def _end_soon() -> None:
    """End this process, also if something holds it up."""
    timer = threading.Timer(ORPHANED_TIMEOUT_S, os._exit, (1,))
    timer.daemon = True
    timer.start()


class FrontEnd:
    """The application over models that compute elsewhere.

    Args:
        on_orphaned: called when the engine process is gone, and this front end is to end.

    Raises:
        StartupError: its surroundings are not those in which the engine process began.
    """

    def __init__(
        self,
        welcome: Welcome,
        stream: socket.socket,
        *,
        on_orphaned: Callable[[], None] = lambda: None,
    ) -> None:
        settings = welcome.settings
        self._channel = Channel(stream, self._answer, self._told, self._lost)
        self._on_orphaned = on_orphaned
        self._models = RemoteModels(registry_of(welcome), settings, self._channel)
        self.app = create_app(
            settings,
            self._models,
            Access(settings, RemoteCounters(self._channel)),
            on_ready=lambda: self._channel.tell(Kind.READY),
            on_failure=self._cannot_start,
            metrics_page=self._metrics_page,
        )
        self._server = http_server(self.app, self._models, settings)

    def run(self, listener: socket.socket) -> None:
        """Serve until told to end."""
        self._server.run(sockets=[listener])
        self._models.join()

    async def _answer(self, kind: Kind, _content: bytes) -> Parts:
        if kind is not Kind.SAMPLES:
            raise BadFrame(f"a question of kind {kind.name}")
        return (orjson.dumps(samples_of(self._metrics)),)

    def _told(self, kind: Kind, content: bytes) -> None:
        match kind:
            case Kind.STATE:
                self._models.take_over(content)
            case Kind.DRAIN:
                self._server.drain()
            case _:
                raise BadFrame(f"a frame of kind {kind.name} at the wrong time")

    def _lost(self) -> None:
        if self._server.should_exit:
            return
        log.error("the engine process is gone: this front end ends")
        self._server.drain()
        self._server.drain()
        self._on_orphaned()

    def _cannot_start(self, error: StartupError) -> None:
        self._channel.tell(Kind.CANNOT_START, error.message.encode())
        self._server.should_exit = True

    async def _metrics_page(self, metrics: Metrics) -> bytes:
        mine = orjson.dumps(samples_of(metrics))
        others = await self._channel.ask(Kind.SAMPLES_OF_OTHERS, mine)
        return summed_page(metrics, orjson.loads(others))

    @property
    def _metrics(self) -> Metrics:
        metrics = self.app.state.services.metrics
        assert isinstance(metrics, Metrics)
        return metrics


def registry_of(welcome: Welcome) -> Registry:
    """The models that the engine process serves, read from disk again.

    Raises:
        CardError: one was changed since.
    """
    settings: Settings = welcome.settings
    found = read_registry(*settings.model_folders()).select(settings.model)
    dtypes = {name: dtype for name, dtype, _ in welcome.served}
    # What the devices compute in is the engine process's to decide.
    registry = Registry(c.computed_in(dtypes.get(c.name, c.dtype)) for c in found.cards)
    if served_by(registry) != welcome.served:
        raise CardError("a model's card was changed on disk since the server started")
    return registry
