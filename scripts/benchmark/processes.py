"""Processes that the benchmark starts, measures from outside and surely ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

REPOSITORY = Path(__file__).resolve().parents[2]
_STOP_TIMEOUT_S = 10
_SHOWN_CHARS = 500  # of what a process that failed said last


class BenchError(Exception):
    """Something the person at the keyboard can put right: shown as one line, exit code 2."""


class Usage(NamedTuple):
    """What a process and its children took so far."""

    cpu_s: float
    resident_bytes: int


class Process:
    """A child in a session of its own, so that a Ctrl-C reaches it only through this class.

    Args:
        talks: keep its standard output for reading; otherwise it goes to the log.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path = REPOSITORY,
        talks: bool = True,
    ) -> None:
        self.name = name
        # Appended to, so that reading it does not move the place where the child writes.
        self._log = tempfile.TemporaryFile(mode="a+", errors="replace")  # noqa: SIM115
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if talks else self._log,
            stderr=self._log,
            text=True,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )

    def usage(self) -> Usage:
        """CPU seconds and resident memory now, of the process and its living children."""
        import psutil  # not wanted for the scenarios on GPUs

        cpu_s, resident_bytes = 0.0, 0
        parent = psutil.Process(self.popen.pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                cpu_s += times.user + times.system
                resident_bytes += process.memory_info().rss
        return Usage(cpu_s, resident_bytes)

    def log(self) -> str:
        """Everything written to standard error so far."""
        self._log.seek(0)
        return self._log.read()

    def failed(self, what: str) -> BenchError:
        """An error that carries the last line the process wrote."""
        lines = self.log().split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return BenchError(f"{self.name} {what}: {said[:_SHOWN_CHARS]}")

    def wait_ready(self) -> None:
        """Wait until it can be used.

        Raises:
            BenchError: it ended instead, or took too long.
        """

    def __enter__(self) -> Self:
        try:
            self.wait_ready()
        except BaseException:  # an interrupt as well: nobody else would end it
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process and whatever it started."""
        for stop in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(_STOP_TIMEOUT_S)
                break
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._log.close()
