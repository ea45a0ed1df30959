"""An engine in an event loop of its own thread, for callers in any other thread.

Callers hand in coroutines and wait for their outcomes. Threads do not follow into a forked process:
there every call raises instead of waiting for ever. Knows nothing of texts.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent import futures
from typing import Any, Generic, TypeVar

from server.engine.engine import Engine
from server.errors import Draining

T = TypeVar("T")


class EngineCall(Generic[T]):
    """Work in the engine's thread that another thread waits for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        self._outcome: futures.Future[T] = futures.Future()

    def start(self, work: Coroutine[Any, Any, T]) -> None:
        """Begin, in the engine's thread."""
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(self._settle)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it has ended, for no longer than this; whether it has."""
        return not futures.wait([self._outcome], timeout_s).not_done

    def result(self) -> T:
        """What the work returns or raises; blocks.

        Raises:
            RuntimeError: it was cancelled, or the engine closed.
        """
        return self._outcome.result()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._outcome.done()

    def cancel(self, *, and_wait: bool = False) -> None:
        """Have it end; what it clears away it clears away in the engine's thread.

        Args:
            and_wait: until it has ended.
        """
        if not self.done:
            self._loop.call_soon_threadsafe(self._cancel_task)
        if and_wait:
            self.wait()

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _settle(self, task: asyncio.Task[T]) -> None:
        if task.cancelled() or isinstance(task.exception(), Draining):
            self._outcome.set_exception(RuntimeError("it was closed before this was done"))
        elif (error := task.exception()) is not None:
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(task.result())


class EngineThread:
    """A daemon thread with an event loop, and an engine in it until the end.

    It ends with the interpreter at the latest: a thread that is inside ONNX Runtime then would
    abort the process.

    Args:
        make_engine: called in that thread, inside the loop.

    Raises:
        Exception: whatever `make_engine` raises.
    """

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._process_id = os.getpid()
        self._closing = threading.Lock()
        self._closed = False
        self._ending: asyncio.Task[None] | None = None
        self._ended = threading.Event()
        self._engine: Engine | None = None  # until it is made
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)

        async def make() -> None:
            self._engine = make_engine()

        try:
            self._begin(make()).result()
        except BaseException:  # also a signal's, which comes here while the engine is made there
            self.close()
            raise

    def begin(self, work: Callable[[Engine], Coroutine[Any, Any, T]]) -> EngineCall[T]:
        """Begin work in the engine's thread; any thread but that one may call.

        Raises:
            RuntimeError: it is closed, or was made before this process was forked off.
        """
        if self._forked_off:
            raise RuntimeError("it was opened before this process was forked off; open one here")
        with self._closing:
            if self._closed:
                raise RuntimeError("it is closed")
            assert self._engine is not None
            return self._begin(work(self._engine))

    def close(self) -> None:
        """Have what is under way raise RuntimeError, and wait for all threads.

        Each ends after at most one micro-batch. Does nothing after a fork. Must not be called in
        one of these threads.
        """
        if not self._forked_off:
            self.begin_to_close()
            # Not only `join`: one that a signal interrupts takes the thread for ended ever after.
            self._ended.wait()
            self._thread.join()

    def begin_to_close(self) -> None:
        """As `close`, but waits for nothing; any thread may call, also these.

        For the garbage collector, which comes in any thread: in one of these, and in one that
        holds what these need to end.
        """
        if self._forked_off:
            return
        with self._closing:
            self._closed = True
        # Each time: a signal may have come in between the first time.
        with contextlib.suppress(RuntimeError):  # the loop is closed: all is done
            self._loop.call_soon_threadsafe(self._start_to_end)

    @property
    def _forked_off(self) -> bool:
        """Whether this process is a fork of the one that has the threads."""
        return os.getpid() != self._process_id

    def _begin(self, work: Coroutine[Any, Any, T]) -> EngineCall[T]:
        call: EngineCall[T] = EngineCall(self._loop)
        self._loop.call_soon_threadsafe(call.start, work)
        return call

    def _start_to_end(self) -> None:
        if self._ending is None:
            self._ending = self._loop.create_task(self._end_all())

    async def _end_all(self) -> None:
        try:
            if self._engine is not None:
                self._engine.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        finally:
            self._loop.stop()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()
            if self._engine is not None:
                self._engine.join()
            atexit.unregister(self.close)
            self._ended.set()
