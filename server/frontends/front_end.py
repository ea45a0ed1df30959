"""A front end: the whole HTTP server in a process of its own, but for the models' computing.

Obeys the engine process alone, by the channel: signals are blocked by who starts it. Ends when it
is told to, or when the engine process is gone.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import Metric

from server import logs
from server.access.access import Access
from server.catalog.registry import Registry, read_registry
from server.engine.offering import Offering
from server.engine.resident_memory import give_back_freed_memory
from server.errors import CardError, EngineSilent, StartupError
from server.frontends import messages
from server.frontends.channel import Channel
from server.frontends.framing import BadFrame, Kind, head_of, receive_frame
from server.frontends.remote_counters import RemoteCounters
from server.frontends.remote_models import RemoteModels
from server.frontends.summed_metrics import Changes, Samples, samples_of, summed_page
from server.frontends.wire import read_message, write
from server.http.app import create_app
from server.http.serving import http_server
from server.metrics import Metrics
from server.program.last_resort import end_within
from server.program.orphans import go_on_without_parent
from server.program.process_activity import ProcessActivity
from server.settings import Settings

log = logging.getLogger(__name__)

# Without the engine process nothing is left to do but last answers.
ORPHANED_TIMEOUT_S = 2.0
# Without requests only what time changes is told, this often: the processor's seconds and the like.
IDLE_TICKS = 10


def run(
    stream: socket.socket, listener: socket.socket, metrics_listener: socket.socket | None = None
) -> None:
    """Be a front end until told to end.

    Args:
        stream: the channel to the engine process.
        listener: where requests come in.
        metrics_listener: where those for /metrics come in, if it has a port of its own.
    """
    go_on_without_parent()
    first = receive_frame(stream)
    if first is None:  # the engine process is gone already
        return
    welcome = read_message(first.content)
    if not isinstance(welcome, messages.Welcome):
        raise BadFrame(f"{type(welcome).__name__} in place of a welcome")
    logs.configure(welcome.settings.log_level, welcome.settings.log_format)
    try:
        front_end = FrontEnd(
            welcome,
            stream,
            on_orphaned=functools.partial(end_within, ORPHANED_TIMEOUT_S),
            on_engine_lost=functools.partial(_kill_parent, os.getppid()),
            engine_at_work=ProcessActivity(os.getppid()).is_at_work,
            metrics_listener=metrics_listener,
        )
    except StartupError as error:
        content = write(messages.CannotStart(error.message))
        stream.sendall(head_of(Kind.TELL, 0, content) + content)
        return
    give_back_freed_memory()
    front_end.run(listener)


def _kill_parent(parent: int) -> None:
    """Kill the engine process if it is still there; it may be stopped, or hang in a library.

    It is not killed where it is the first process of a container.
    """
    if os.getppid() == parent:
        os.kill(parent, signal.SIGKILL)


class FrontEnd:
    """The application over models that compute elsewhere.

    Args:
        on_orphaned: called when the engine process is gone, and this front end is to end.
        on_engine_lost: called before that if it is still there, and does not answer any more.
        engine_at_work: whether it does anything; see Silence.
        metrics_listener: where requests for /metrics come in, if it has a port of its own.

    Raises:
        StartupError: its surroundings are not those in which the engine process began.
    """

    def __init__(
        self,
        welcome: messages.Welcome,
        stream: socket.socket,
        *,
        on_orphaned: Callable[[], None] = lambda: None,
        on_engine_lost: Callable[[], None] = lambda: None,
        engine_at_work: Callable[[], bool] = lambda: False,
        metrics_listener: socket.socket | None = None,
    ) -> None:
        settings = welcome.settings
        self._channel = Channel(stream, self._answer, self._told, self._lost)
        self._on_orphaned = on_orphaned
        self._on_engine_lost = on_engine_lost
        self._changes = Changes()
        self._ticks = 0
        self._requests_seen = 0
        self._was_busy = False
        self._others: list[Samples] = []  # the metrics of the other processes, as told last
        self._models = RemoteModels(registry_of(welcome), settings, self._channel, engine_at_work)
        self._offering = Offering(self._models)
        self.app = create_app(
            settings,
            self._offering,
            Access(settings, RemoteCounters(self._channel)),
            on_ready=lambda: self._channel.tell(messages.Ready()),
            on_failure=self._cannot_start,
            metrics_page=self._metrics_page,
        )
        self._metrics.engine_silent_seconds.set_function(lambda: self._models.silent_s)
        self._server = http_server(
            self.app,
            settings,
            on_second=self.tick,
            metrics_listener=metrics_listener,
        )

    def run(self, listener: socket.socket) -> None:
        """Serve until told to end."""
        self._server.run(sockets=[listener])
        self._offering.join()

    def tick(self) -> None:
        """One more tick has gone by: tell that it has, and look whether the engine process has."""
        if self._channel.is_open:
            self._tell_alive(self._metrics.families() if self._has_news() else ())
        if self._models.tick() and not self._server.should_exit:
            log.critical(
                "the engine process is silent for %.0f s: it is killed, and this front end ends",
                self._models.silent_s,
            )
            self._on_engine_lost()
            self._end()

    def _has_news(self) -> bool:
        """Whether to look at the metrics: the most of a tick's millisecond."""
        self._ticks += 1
        served = self._server.server_state
        was_busy, self._was_busy = self._was_busy, bool(served.tasks)
        news = served.total_requests - self._requests_seen
        self._requests_seen = served.total_requests
        return was_busy or self._was_busy or news > 0 or self._ticks % IDLE_TICKS == 1

    async def _answer(self, question: messages.Question[Any]) -> None:
        raise BadFrame(f"{type(question).__name__} as a question to a front end")

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
        self._end()

    def _end(self) -> None:
        self._server.drain()
        self._server.drain()
        self._on_orphaned()

    def _cannot_start(self, error: StartupError) -> None:
        self._channel.tell(messages.CannotStart(error.message))
        self._server.should_exit = True

    async def _metrics_page(self, metrics: Metrics) -> bytes:
        families = metrics.families()
        self._tell_alive(families)  # first, so that no page of another front end shows less
        with contextlib.suppress(EngineSilent):
            self._others = await self._channel.ask(messages.SamplesOfOthers())
        return summed_page(families, self._others)

    def _tell_alive(self, families: Iterable[Metric]) -> None:
        samples = samples_of(families, alike=self._metrics.alike)
        self._channel.tell(messages.Alive(self._changes.take(samples)))

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
