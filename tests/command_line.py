"""The command `embedding-server` for tests: in this process, or as one that signals reach."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from unittest import mock

from server.commands.cli import main

# Tests wait for a command that does not end, but not for ever.
PATIENCE_S = 120


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended, and all that it wrote."""

    exit_code: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, env: Mapping[str, str] | None = None, stdin: str = "") -> Outcome:
    """Run the command in this process through its entry point; no terminal is there.

    What it changes in this process is put back. What it raises beyond its entry point, which a user
    would see as a traceback, is raised here. A command that outlasts PATIENCE_S gets SIGTERM.

    Args:
        env: variables beside this process's own, of which those with settings are left out.
        stdin: what comes through the pipe that is standard input; less than a pipe holds.
    """
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as sender:
        sender.write(stdin)
    with (
        os.fdopen(reading, "rb") as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
    ):
        with (
            _put_back(),
            mock.patch.dict(os.environ, user_environment(env), clear=True),
            mock.patch.object(sys, "argv", ["embedding-server", *map(str, arguments)]),
            _standard_streams(given, out, errors),
            _time_limit(),
        ):
            exit_code = _exit_code()
        return Outcome(exit_code, _content(out), _content(errors))


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """Begin the command as a process of its own, in which SIGINT interrupts."""
    with interruptible():
        return subprocess.Popen(
            [sys.executable, "-m", "server", *map(str, arguments)],
            env=user_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def end(running: subprocess.Popen[bytes], with_signal: signal.Signals) -> Outcome:
    """Send the signal and wait; standard input stays open, and the output must fit into a pipe."""
    running.send_signal(with_signal)
    running.wait(timeout=PATIENCE_S)
    out, errors = running.communicate()
    return Outcome(running.returncode, out.decode(), errors.decode())


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Processes that begin in here are interrupted by SIGINT.

    If this one was told to ignore it, as `nohup` and the background of a shell do, they would
    inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """No file that this process writes can grow beyond this: stands for a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def user_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables without settings and without what shapes the output, and `more`."""
    shaping = ("COLUMNS", "FORCE_COLOR", "TERMINAL_WIDTH", "TTY_COMPATIBLE")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("EMBEDDING_") and name not in shaping
    }
    return kept | dict(more or {})


def assert_mistake(outcome: Outcome, *named: str) -> None:
    """One line on standard error that names these, nothing else, and exit code 2."""
    assert len(outcome.stderr.splitlines()) == 1, outcome.stderr
    assert outcome.stderr.startswith("embedding-server: ")
    assert [text for text in named if text not in outcome.stderr] == []
    assert outcome.stdout == ""
    assert outcome.exit_code == 2


def _exit_code() -> int:
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        for handler in logging.getLogger().handlers:
            handler.flush()  # as the end of the process does
    return 0


@contextlib.contextmanager
def _standard_streams(*files: IO[bytes]) -> Iterator[None]:
    """These are standard input, output and error, also for C libraries and child processes."""
    ours = (sys.stdin, sys.stdout, sys.stderr)
    numbers = range(len(files))
    saved = [os.dup(number) for number in numbers]
    try:
        for number, file in zip(numbers, files, strict=True):
            os.dup2(file.fileno(), number)
        with (
            open(0, encoding="utf-8", closefd=False) as sys.stdin,
            open(1, "w", encoding="utf-8", closefd=False) as sys.stdout,
            open(2, "w", encoding="utf-8", closefd=False) as sys.stderr,
        ):
            yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = ours
        for number, copy in zip(numbers, saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Send SIGTERM to this process after PATIENCE_S, which ends whatever command runs."""
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, 1)  # a drain is cut short by the second
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def _put_back() -> Iterator[None]:
    """What commands change in their process is put back in the end."""
    root = logging.getLogger()
    with contextlib.ExitStack() as changed:
        changed.callback(os.chdir, Path.cwd())
        changed.enter_context(warnings.catch_warnings())
        changed.callback(logging.captureWarnings, capture=False)
        changed.enter_context(mock.patch.object(root, "handlers", root.handlers[:]))
        for logger in (root, logging.getLogger("uvicorn")):
            changed.callback(logger.setLevel, logger.level)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            changed.callback(signal.signal, number, signal.getsignal(number))
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        changed.callback(resource.setrlimit, resource.RLIMIT_NOFILE, open_files)
        yield


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()
