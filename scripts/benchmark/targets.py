"""What is measured: processes that the benchmark starts, looks at from outside and surely ends.

A server is asked over HTTP. A peer is an object in a process of its own, so that its threads, memory
and CPU seconds are its own too. Each has a session of its own: a Ctrl-C reaches it only by `close`.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psutil

from scripts.benchmark.client import HEADERS

REPOSITORY = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S, _STOP_TIMEOUT_S, _PEER_STOP_S = 300, 10, 3
_READY_POLL_S = 0.2
_SHOWN_CHARS = 500  # of what a process that failed said last
_PEER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # Products by exactly the threads that are started here, and nothing reported to Microsoft.
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}


class BenchError(Exception):
    """Something the person at the keyboard can put right: shown as one line."""


class Usage(NamedTuple):
    """What a process and all below it take."""

    cpu_s: float  # so far, of those below that have ended as well
    resident_bytes: int  # now
    processes: int


class Target:
    """A process and all below it, which computes in `dtype`."""

    def __init__(self, name: str, pid: int, dtype: str = "float32") -> None:
        self.name, self.pid, self.dtype = name, pid, dtype

    def usage(self) -> Usage:
        """What they took so far."""
        cpu_s, resident_bytes, processes = 0.0, 0, 0
        parent = psutil.Process(self.pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                cpu_s += times.user + times.system + times.children_user + times.children_system
                resident_bytes += process.memory_info().rss
                processes += 1
        return Usage(cpu_s, resident_bytes, processes)

    def wait_ready(self) -> None:
        """Wait until it can be asked; raise BenchError if it ended instead, or took too long."""

    def close(self) -> None:
        """End the process and whatever it started."""

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class PeerOptions(NamedTuple):
    """What every peer's class is made with; scenarios.toml tells of the last three."""

    device: str  # as the server's setting: cpu, cuda
    model_folder: Path  # the official one
    dtype: str = "float32"
    backend: str = "torch"
    packages: str = ""  # a folder whose packages go before the installed ones

    @property
    def torch_device(self) -> str:
        """As torch names it."""
        return "cuda:0" if self.device == "cuda" else self.device


class Peer(Target):
    """An object in another process; `path` is its module in this folder and its class."""

    def __init__(self, name: str, path: str, options: PeerOptions) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, _begin_session, (options.packages,))
        super().__init__(name, self._pool.submit(os.getpid).result(), options.dtype)
        self._made = path, options
        self._pool.submit(_make, *self._made)  # what it raises is told when it is asked

    def ask(self, method: str, **arguments: Any) -> Any:
        """What a method gives; raise BenchError if it failed or the process ended."""
        try:
            return self._pool.submit(_ask, *self._made, method, arguments).result()
        except BrokenExecutor:
            problem = "ended"
        except BenchError as error:
            problem = str(error)
        raise BenchError(f"{self.name}: {problem}")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        with contextlib.suppress(psutil.Error):  # it has ended, or is at work
            psutil.Process(self.pid).wait(_PEER_STOP_S)
        self._signal(signal.SIGKILL)


def _begin_session(packages: str) -> None:
    os.setsid()
    os.environ |= _PEER_ENVIRONMENT
    sys.path[:0] = [packages] * bool(packages)
    for stream in (1, 2):  # libraries print
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


@functools.cache
def _make(path: str, options: PeerOptions) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(f"scripts.benchmark.{module}"), name)(options)


def _ask(path: str, options: PeerOptions, method: str, arguments: dict[str, Any]) -> Any:
    try:
        return getattr(_make(path, options), method)(**arguments)
    except Exception as error:  # libraries, kernels and compilers fail in many ways
        lines = str(error).strip().splitlines()
        raise BenchError(lines[0] if lines else type(error).__name__) from None


class Server(Target):
    """A process that answers POST /v1/embeddings.

    In its command PORT stands for a free port, and PYTHON for what runs this.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        directory: Path = REPOSITORY,
        environment: Mapping[str, str] = MappingProxyType({}),
        dtype: str = "float32",
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address: tuple[str, int] = probe.getsockname()
        # Appended to, so that reading it does not move the place where the child writes.
        self._log = tempfile.TemporaryFile(mode="a+", errors="replace")  # noqa: SIM115
        known = {"PORT": str(self.address[1]), "PYTHON": sys.executable}
        command = [known.get(part, part) for part in command]
        place: Any = {"cwd": directory, "env": {**os.environ, **environment}}
        streams: Any = {"stdout": self._log, "stderr": self._log}
        self._popen = subprocess.Popen(command, **place, **streams, start_new_session=True)
        super().__init__(name, self._popen.pid, dtype)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self._popen.poll() is None and time.monotonic() < deadline:
            if "http://{}:{}".format(*self.address) in self.log():  # told when it is ready
                return
            time.sleep(_READY_POLL_S)
        last_line = self.log().strip().rpartition("\n")[2][:_SHOWN_CHARS]
        raise BenchError(f"{self.name} did not start: {last_line or 'it said nothing'}")

    def request(self, method: str, path: str, body: str | None = None) -> bytes | None:
        """An answer's body, None unless its status is 200."""
        with contextlib.closing(http.client.HTTPConnection(*self.address)) as connection:
            connection.request(method, path, body, HEADERS)
            answer = connection.getresponse()
            read = answer.read()
        return read if answer.status == 200 else None

    def log(self) -> str:
        """Everything written so far."""
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_STOP_TIMEOUT_S)
                break
        self._log.close()


def own_server(
    name: str, flags: Sequence[str], checkout: Path = REPOSITORY, dtype: str = "float32"
) -> Server:
    """`embedding-server serve` of a checkout."""
    # Python takes the package `server` of the folder it is started in.
    command = ["PYTHON", "-m", "server", "serve", "--port", "PORT", *flags]
    return Server(name, command, checkout, dtype=dtype)
