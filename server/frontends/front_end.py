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
from typing import Any

from server import logs
from server.access.access import Access
from server.catalog.registry import Registry, read_registry
from server.engine.offering import Offering
from server.engine.resident_memory import give_back_freed_memory
from server.errors import CardError, StartupError
from server.frontends import messages
from server.frontends.channel import Channel
from server.frontends.framing import BadFrame, Kind, head_of, receive_frame
from server.frontends.remote_counters import RemoteCounters
from server.frontends.remote_models import RemoteModels
from server.frontends.summed_metrics import Samples, samples_of, summed_page
from server.frontends.wire import read_message, write
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
    welcome = read_message(first.content)
    if not isinstance(welcome, messages.Welcome):
        raise BadFrame(f"{type(welcome).__name__} in place of a welcome")
    logs.configure(welcome.settings.log_level, welcome.settings.log_format)
    try:
        front_end = FrontEnd(welcome, stream, on_orphaned=_end_soon)
    except StartupError as error:
        content = write(messages.CannotStart(error.message))
        stream.sendall(head_of(Kind.TELL, 0, content) + content)
        return
    give_back_freed_memory()
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
        welcome: messages.Welcome,
        stream: socket.socket,
        *,
        on_orphaned: Callable[[], None] = lambda: None,
    ) -> None:
        settings = welcome.settings
        self._channel = Channel(stream, self._answer, self._told, self._lost)
        self._on_orphaned = on_orphaned
        self._models = RemoteModels(registry_of(welcome), settings, self._channel)
        self._offering = Offering(self._models)
        self.app = create_app(
            settings,
            self._offering,
            Access(settings, RemoteCounters(self._channel)),
            on_ready=lambda: self._channel.tell(messages.Ready()),
            on_failure=self._cannot_start,
            metrics_page=self._metrics_page,
        )
        self._server = http_server(self.app, self._offering, settings)

    def run(self, listener: socket.socket) -> None:
        """Serve until told to end."""
        self._server.run(sockets=[listener])
        self._offering.join()

    async def _answer(self, question: messages.Question[Any]) -> Samples:
        if not isinstance(question, messages.AskSamples):
            raise BadFrame(f"{type(question).__name__} as a question to a front end")
        return samples_of(self._metrics)

    def _told(self, message: messages.Message) -> None:
        match message:
            case messages.EngineState():
                self._models.update(message)
            case messages.Drain():
                self._server.drain()
            case _:
                raise BadFrame(f"{type(message).__name__} at the wrong time")

    def _lost(self) -> None:
        if self._server.should_exit:
            return
        log.error("the engine process is gone: this front end ends")
        self._server.drain()
        self._server.drain()
        self._on_orphaned()

    def _cannot_start(self, error: StartupError) -> None:
        self._channel.tell(messages.CannotStart(error.message))
        self._server.should_exit = True

    async def _metrics_page(self, metrics: Metrics) -> bytes:
        others = await self._channel.ask(messages.SamplesOfOthers(samples_of(metrics)))
        return summed_page(metrics, others)

    @property
    def _metrics(self) -> Metrics:
        metrics = self.app.state.services.metrics
        assert isinstance(metrics, Metrics)
        return metrics


def registry_of(welcome: messages.Welcome) -> Registry:
    """The models that the engine process serves, read from disk again.

    Raises:
        CardError: one was changed since.
    """
    settings: Settings = welcome.settings
    found = read_registry(*settings.model_folders()).select(settings.model)
    dtypes = {name: dtype for name, dtype, _ in welcome.served}
    # What the devices compute in is the engine process's to decide.
    registry = Registry(c.computed_in(dtypes.get(c.name, c.dtype)) for c in found.cards)
    if messages.served_by(registry) != welcome.served:
        raise CardError("a model's card was changed on disk since the server started")
    return registry
