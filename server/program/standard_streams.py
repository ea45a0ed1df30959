"""Standard input, output and error, whatever who starts a process has made of them.

Closed ones, a full disk, a pipe without a reader or whose reader sleeps. Knows nothing of what is
written.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_NAMES = ("stdin", "stdout", "stderr")
_QUIETLY = 1  # exit codes: of a command whose reader has left, as typer has it,
_LOST = 2  # and of one whose output had no room


def open_standard_streams() -> None:
    """Make sure that all three are open, on nothing if need be.

    Call this before any other file is opened: the next file or socket would get a closed one's
    number, and libraries and child processes would read it and write to it.
    """
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(opened, True)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


class _Output(io.FileIO):
    """Standard output, which remembers what kept it from being written."""

    failure: OSError | None = None

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.failure = error
            raise


@contextlib.contextmanager
def whole_output() -> Iterator[None]:
    """A command that is run in here ends well only if all of its output was written.

    One line tells what kept it; if the reader has left, nobody wants to hear that.

    Raises:
        SystemExit: standard output does not take what was printed.
    """
    given, output = sys.stdout, _Output(sys.stdout.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(output), given.encoding, given.errors, line_buffering=given.isatty()
    )
    try:
        with _flushed(sys.stdout):
            yield
    except OSError as error:
        if error is not output.failure:
            raise
        if error.errno == errno.EPIPE:
            raise SystemExit(_QUIETLY) from None
        print(f"embedding-server: standard output: {error.strerror}", file=sys.stderr)
        raise SystemExit(_LOST) from None
    finally:
        if output.failure is not None:  # what is left would fail again when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())


@contextlib.contextmanager
def _flushed(stream: io.TextIOBase) -> Iterator[None]:
    """Flush it in the end, unless there is something worse to tell."""
    try:
        yield
    except SystemExit as end:
        with contextlib.suppress(*(OSError,) if end.code else ()):
            stream.flush()
        raise
    else:
        stream.flush()


def print_beside(line: str, on_failure: Callable[[OSError], None]) -> None:
    """Print a line to standard output without waiting for its reader, which may never come.

    Args:
        on_failure: called in another thread if it cannot be written.
    """

    def write() -> None:
        left = memoryview(line.encode() + b"\n")
        try:
            while left:
                left = left[os.write(sys.stdout.fileno(), left) :]
        except OSError as error:
            on_failure(error)

    threading.Thread(target=write, name="print-beside", daemon=True).start()
