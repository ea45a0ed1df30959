"""How a signal ends a command: what was begun is cleared away, and the exit code names the signal.

A server that runs has handlers of its own: it drains and ends with 0.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

TERMINATED = 128 + signal.SIGTERM  # 143, as shells report it; of SIGINT it is 130
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SOON_S = 0.01
_heard: list[int] = []  # signals that were raised as an exception
# Exceptions in here are lost, or become others: a signal waits until they are left.
_DEAF_FILE, _DEAF_FUNCTION = "<frozen importlib._bootstrap>", "__del__"


class Terminated(SystemExit):
    """SIGTERM came; an exception, so that `finally` and `with` clear away what was begun."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


def raise_when_stopped() -> None:
    """From now on SIGTERM raises Terminated, and SIGINT KeyboardInterrupt; main thread only.

    Not in the midst of an import, whose libraries may swallow them or make other errors of them,
    but right behind it; a second SIGINT does not wait for that.
    """
    _heard.clear()
    early: set[int] = set()  # the signals that came in the midst of an import

    def stop(number: int, frame: FrameType | None) -> None:
        if _is_deaf(frame):
            if number in early and number == signal.SIGINT:
                os._exit(128 + number)
            early.add(number)
            _send_again(number)
            return
        _heard.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        # `timeout` and supervisors may send it twice; the second must not disturb the clearing.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    for number in {signal.SIGTERM, *_heard_signals()}:
        signal.signal(number, stop)


@contextlib.contextmanager
def exit_code_when_stopped() -> Iterator[None]:
    """A signal ends this block, all that a command does, with its code and without a word."""
    try:
        yield
    except BaseException:
        if _heard:  # whatever it became on its way
            raise SystemExit(128 + _heard[0]) from None
        raise
    finally:
        for number in _heard_signals():  # Python's own end must not write of them
            signal.signal(number, signal.SIG_DFL)


def _is_deaf(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _DEAF_FILE or code.co_name == _DEAF_FUNCTION:
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    """Send a signal to the main thread once more, in a moment."""

    def send() -> None:
        time.sleep(_SOON_S)
        if sys.platform == "win32":
            signal.raise_signal(number)
        else:  # ends its waiting, too
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    _thread.start_new_thread(send, ())  # Thread.start takes a lock, which may be held right now


def ignore_stop_signals() -> None:
    """From now on neither signal is heard: all is done, and the exit code shall say so.

    Supervisors may send one twice. Does nothing outside the main thread, which gets no signals.
    """
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def end_at_once_when_stopped() -> None:
    """From now on both signals end the process there and then, with the same exit codes.

    For the begin of a command, which leaves nothing to clear away; main thread only.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        os._exit(128 + number)

    for number in _heard_signals():
        signal.signal(number, end)


def _heard_signals() -> list[signal.Signals]:
    """But for SIGINT where it is ignored, as `nohup` and the background of a shell have it."""
    return [one for one in STOP_SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]


def end_now() -> None:
    """End with 0 and wait for no thread, which Python would; what was logged is still written."""
    import logging  # not needed by the begin of a command

    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(0)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """In this block both signals end the process there and then, with the same exit codes.

    For work in threads that Python would wait for, and that leaves nothing to clear away. Does
    nothing outside the main thread, which gets no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _heard_signals()}
    end_at_once_when_stopped()
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
