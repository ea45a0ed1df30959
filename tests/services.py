"""Real Redis and PostgreSQL processes for tests, on loopback, in folders of their own."""

from __future__ import annotations

import contextlib
import getpass
import glob
import os
import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import psycopg
import pytest
import redis

from tests.waiting import wait_for

START_TIMEOUT_S = 30
_INSTALL = "apt-get install redis-server postgresql faketime"
_FAKED_CLOCK = "/usr/lib/*/faketime/libfaketimeMT.so.1"
_POSTGRES_FOLDERS = "/usr/lib/postgresql"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class FakedClock:
    """The wall clock of processes that are started with its environment; libfaketime's.

    What they measure by the monotonic clock stays as it is. Not for Redis: its jemalloc asks for the
    time before libfaketime is ready, and both end there.
    """

    def __init__(self, file: Path) -> None:
        found = glob.glob(_FAKED_CLOCK)  # noqa: PTH207
        if not found:
            pytest.fail(f"libfaketime is missing: {_INSTALL}")
        self._file = file
        self.set(0)
        self.environment = {
            "LD_PRELOAD": found[0],
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }

    def set(self, offset_s: int) -> None:
        """Let it differ by so much from the true time."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset_s:+d}")
        new.rename(self._file)


class _Service(ABC):
    """A server process that can be stopped, started again, and frozen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    stop_signal = signal.SIGTERM

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What starts it in the foreground."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it takes requests."""

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        log.close()
        wait_for(self.answers, f"{type(self).__name__}: {(self.folder / 'log').read_text()}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(self.stop_signal)
            self.process.wait(timeout=START_TIMEOUT_S)
            self.process = None

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Stopped for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """There, with all its connections, but without an answer."""
        assert self.process is not None
        process = psutil.Process(self.process.pid)
        whole = [process, *process.children(recursive=True)]
        for one in whole:
            one.suspend()
        try:
            yield
        finally:
            for one in whole:
                one.resume()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class Redis(_Service):
    """redis-server without persistence."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        where = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        return [_found("redis-server"), *where, "--save", ""]

    def answers(self) -> bool:
        try:
            return bool(redis.Redis.from_url(self.url).ping())
        except redis.ConnectionError:
            return False


class Postgres(_Service):
    """PostgreSQL with one superuser and no password; refuses to run as root, so it does not."""

    stop_signal = signal.SIGINT  # at SIGTERM it would wait for its clients to leave

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._user = "postgres" if os.geteuid() == 0 else getpass.getuser()
        self._as_user = (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
            if os.geteuid() == 0
            else []
        )
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        initdb = [_found("initdb"), "-A", "trust", "--no-sync", "-U", "postgres", "-D"]
        subprocess.run(
            [*self._as_user, *initdb, str(folder / "data")], check=True, capture_output=True
        )

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def command(self) -> Sequence[str]:
        where = ["-D", str(self.folder / "data"), "-k", str(self.folder), "-p", str(self.port)]
        fast = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1"]
        return [*self._as_user, _found("postgres"), *where, *fast]

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def empty_database(self) -> str:
        """The URL of an empty database, which is the caller's until this is called again.

        It is one and the same: making one takes long and 7 MB, and removing a hundred half a minute.
        """
        url = self.url.removesuffix("postgres") + "test"
        with psycopg.connect(self.url, autocommit=True) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = 'test'").rowcount:
                connection.execute("CREATE DATABASE test")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return url


def _found(program: str) -> str:
    """The program's path; a test that needs it fails, and says how to get it."""
    installed = sorted(Path(_POSTGRES_FOLDERS).glob(f"*/bin/{program}"))
    path = shutil.which(program) or (str(installed[-1]) if installed else None)
    if path is None:
        pytest.fail(f"{program} is missing: {_INSTALL}")
    return path
