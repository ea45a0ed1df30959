"""A real server process for tests: started by the real command, ended by its own pid."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


class ServerProcess:
    """`embedding-server serve` on a free loopback port; a context manager."""

    def __init__(
        self,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        command = [*wrapper, sys.executable, "-m", "server", "serve", "--port", "0", *flags]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self.process.stdout is not None
        try:
            self.ready_line = self.process.stdout.readline()
        except BaseException:  # a signal: nobody has it to close it
            self.close()
            raise
        found = re.search(r"http://(\S+?)/v1/embeddings", self.ready_line)
        if found is None:
            log = self.log()
            self.close()
            raise AssertionError(f"the server did not start: {log}")
        self.url = f"http://{found.group(1)}"

    @property
    def base_url(self) -> str:
        """What OpenAI's clients call base_url."""
        return f"{self.url}/v1"

    def log(self) -> str:
        """Everything written to standard error so far."""
        # The server's processes write where the file's one position is: it must not be moved.
        file = self._stderr.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, wait, return the exit code."""
        self.process.send_signal(with_signal)
        return self.process.wait(timeout=STOP_TIMEOUT_S)

    def answer_of_another(self, url: str, than: psutil.Process) -> httpx.Response:
        """What another front end than this one answers; on new connections until one has it."""
        for _ in range(100):
            with httpx.Client(timeout=60) as client:
                answer = client.get(url)
                connection = answer.extensions["network_stream"].get_extra_info("socket")
                if self.child_with(connection) not in (None, than):
                    return answer
        raise AssertionError("no other front end has answered")

    def child_with(self, connection: socket.socket) -> psutil.Process | None:
        """The front end that has the other end of this connection; None while none has it."""
        mine = connection.getsockname()[1]
        for one in psutil.Process(self.process.pid).children():
            if any(
                other.raddr and other.raddr.port == mine for other in one.net_connections("tcp")
            ):
                return one
        return None

    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process if it still runs, and let go of its output."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()
