"""How a signal ends a command: what was begun is cleared away, and the exit code names the signal.

A server that runs has handlers of its own: it drains and ends with 0.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT  # 130 and 143, as shells report them
TERMINATED = 128 + signal.SIGTERM
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Terminated(SystemExit):
    """SIGTERM came; an exception, so that `finally` and `with` clear away what was begun."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


def raise_when_terminated() -> None:
    """From now on SIGTERM raises Terminated, as SIGINT raises KeyboardInterrupt; main thread only."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        # `timeout` and supervisors may send it twice; the second must not disturb the clearing.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


def ignore_stop_signals() -> None:
    """From now on neither signal is heard: all is done, and the exit code shall say so.

    Supervisors may send one twice. Does nothing outside the main thread, which gets no signals.
    """
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """In this block both signals end the process there and then, with the same exit codes.

    For work in threads that Python would wait for, and that leaves nothing to clear away. Does
    nothing outside the main thread, which gets no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    heard = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, was in heard.items():
            signal.signal(number, was)
