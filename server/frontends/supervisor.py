"""Several processes on one port: this one computes, and keeps front ends that speak HTTP.

start front ends -> load -> ready line -> SIGTERM or SIGINT -> front ends finish what is in flight
and end -> the models are closed -> exit 0. A front end that ends by itself is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from server import logs
from server.access.access import Access
from server.engine.broken_models import BrokenModels
from server.engine.offering import Offering
from server.errors import GivenUp, SettingError, StartupError
from server.frontends.engine_service import EngineService, FrontEndLink
from server.frontends.silence import TICK_S
from server.http.listening import SharedAddress, allow_many_connections, announce, tell_metrics_port
from server.metrics import Metrics
from server.program.last_resort import end_within
from server.program.process_activity import ProcessActivity
from server.program.rust_panics import panics_as_errors
from server.program.termination import STOP_SIGNALS, ignore_stop_signals
from server.settings import Settings

log = logging.getLogger(__name__)

RESTART_DELAY_S = 0.5  # a front end that ends at once must not be replaced without a pause
# Longer than a front end takes once its drain is over; then it is killed.
_END_TIMEOUT_S = 10.0
_REAP_INTERVAL_S = 0.02


def run_processes(settings: Settings, offering: Offering, access: Access) -> None:
    """Serve until a signal; returns after a clean drain.

    Raises:
        StartupError: the server could not start, or its models could not be loaded.
    """
    if sys.platform == "win32":
        raise SettingError("setting frontends: more than 1 needs Linux, macOS or the like")
    allow_many_connections()
    try:
        with contextlib.ExitStack() as open_ones:
            wanted = [(settings.host, settings.port), settings.metrics_address]
            addresses = [
                open_ones.enter_context(contextlib.closing(SharedAddress(*one)))
                for one in wanted
                if one is not None
            ]
            if settings.metrics_address is not None:
                tell_metrics_port(settings.metrics_address[0], addresses[-1].port)
            supervisor = Supervisor(settings, offering, addresses)
            with asyncio.Runner(loop_factory=_new_loop) as runner:
                runner.run(supervisor.run(access))
    finally:
        offering.join()


def _new_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


class FrontEndProcess(NamedTuple):
    """A running front end."""

    process: subprocess.Popen[bytes]
    link: FrontEndLink


class Supervisor:
    """The engine process's life, and that of its front ends; belongs to the event loop's thread."""

    def __init__(
        self, settings: Settings, offering: Offering, addresses: Sequence[SharedAddress]
    ) -> None:
        self._settings = settings
        self._offering = offering
        self._addresses = addresses  # the first is that of requests
        self._metrics = Metrics(
            (card.name for card in offering.registry.cards),
            (card.name for card in offering.encoder_cards),
        )
        self._metrics.dropped_log_lines.set_function(logs.dropped_lines)
        self._service = EngineService(offering, self._metrics, settings)
        self._running: dict[int, FrontEndProcess] = {}  # by number
        self._is_ready = False
        self._given_up: GivenUp | None = None

    async def run(self, access: Access) -> None:
        """Serve until a signal.

        Args:
            access: was needed to see whether keys are asked for; the front ends open their own.

        Raises:
            StartupError: the models cannot be loaded, or a front end cannot start.
            GivenUp: a model does not compute any more.
        """
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            # Not the loop's own handlers: with those gone, a late signal would end the process.
            signal.signal(number, lambda got, _: loop.call_soon_threadsafe(self._stop, got))
        asks_for_keys = access.asks_for_keys
        await access.close()
        numbers = range(self._settings.frontends or 1)
        first = [await self._start_front_end(number) for number in numbers]
        keepers = [asyncio.create_task(self._keep(*numbered)) for numbered in enumerate(first)]
        telling = asyncio.create_task(self._service.tell_state())
        watching = asyncio.create_task(self._watch())
        starting = asyncio.create_task(self._become_ready([one.link for one in first]))
        stopping = asyncio.create_task(self._offering.draining.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                self._is_ready = True
                announce(self._settings, self._addresses[0].port, asks_for_keys=asks_for_keys)
                await stopping
            await asyncio.wait(keepers, timeout=self._settings.drain_timeout_s + _END_TIMEOUT_S)
        finally:
            self._offering.drain()
            for front_end in self._running.values():
                front_end.process.kill()
            await asyncio.wait(keepers, timeout=_END_TIMEOUT_S)
            for task in (starting, telling, watching):
                task.cancel()
            self._offering.close()
            ignore_stop_signals()
        if self._given_up is not None:
            raise self._given_up

    async def _become_ready(self, links: list[FrontEndLink]) -> None:
        try:
            with panics_as_errors():
                await self._offering.load(self._metrics)
            for link in links:
                await link.ready
        except StartupError:
            raise
        except Exception as error:
            log.exception("loading failed")
            raise StartupError(f"loading the models failed: {error}") from error

    async def _watch(self) -> None:
        """Look every tick for front ends that are silent, and for models that are broken."""
        broken = BrokenModels(self._offering.models)
        while self._given_up is None:
            await asyncio.sleep(TICK_S)
            for number, front_end in self._running.items():
                if front_end.link.tick():
                    log.error("front end %d is silent for too long: it is killed", number)
                    front_end.process.kill()  # also if it is stopped
            try:
                broken.count_second()
            except GivenUp as error:
                self._give_up(error)

    def _give_up(self, error: GivenUp) -> None:
        """Answer what is in flight and end."""
        log.critical("%s", error.message)
        self._given_up = error
        end_within(_END_TIMEOUT_S)
        self._offering.close()  # front ends get an answer to all that they have asked
        self._service.drain()

    def _stop(self, number: int) -> None:
        """A signal came; the second signal cuts the drain short."""
        if not self._offering.draining.is_set():
            log.info("%s: finishing work in flight", signal.Signals(number).name)
        self._service.drain()

    async def _keep(self, number: int, front_end: FrontEndProcess) -> None:
        """Replace this front end whenever it ends, until the server stops."""
        first = front_end
        while True:
            await front_end.link.lost.wait()
            code = await _reap(front_end.process)
            del self._running[number]
            failure = front_end.link.ready.exception()
            if failure is not None and front_end is first and not self._is_ready:  # the start fails
                return
            why = failure or f"exit code {code}"
            reason = "silent" if front_end.link.is_lost else "ended"
            self._metrics.frontend_restarts.labels(reason).inc()
            another = await self._start_another(number, why)
            if another is None:
                return
            front_end = another

    async def _start_another(self, number: int, why: object) -> FrontEndProcess | None:
        """Try until there is another front end, or until the server stops."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._offering.draining.wait(), RESTART_DELAY_S)
            if self._offering.draining.is_set():
                return None
            log.error("front end %d ended (%s): starting another one", number, why)
            try:
                return await self._start_front_end(number)
            except OSError as error:  # the system gives no more processes or files
                why = error

    async def _start_front_end(self, number: int) -> FrontEndProcess:
        ours, theirs = socket.socketpair()
        try:
            with contextlib.ExitStack() as files:
                files.enter_context(theirs)
                # No client waits for one that takes another one's place.
                listeners = [
                    files.enter_context(address.listener(at_once=not self._is_ready))
                    for address in self._addresses
                ]
                process = _spawn(theirs, *listeners)
        except BaseException:
            ours.close()
            raise
        activity = ProcessActivity(process.pid)
        link = await self._service.connect(ours, activity.is_at_work)
        front_end = FrontEndProcess(process, link)
        self._running[number] = front_end
        return front_end


def _spawn(*sockets: socket.socket) -> subprocess.Popen[bytes]:
    """A process that has these sockets, finds the same modules, and gets no signals to stop.

    Settings come by the channel: a command line is for everybody to see.
    """
    files = [one.fileno() for one in sockets]
    # Control-C and supervisors tell every process at once; the drain must be this one's.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "server.frontends", *map(str, files)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=files,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _reap(process: subprocess.Popen[bytes]) -> int:
    """Its exit code; it has let go of the channel, so that it ends soon or is killed."""
    deadline_s = asyncio.get_running_loop().time() + _END_TIMEOUT_S
    while (code := process.poll()) is None:
        if asyncio.get_running_loop().time() > deadline_s:
            process.kill()
        await asyncio.sleep(_REAP_INTERVAL_S)
    return code
