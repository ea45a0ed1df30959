"""Standard streams that are closed, full or not read: whether the server serves, and what it tells.

    python -m scripts.prove.streams                  # a minute
    python -m scripts.prove.streams --frontends 2

Starts servers of its own on loopback and ends them.
"""

from __future__ import annotations

import contextlib
import os
import pty
import random
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx

from scripts.prove.clients import SERVE, outcome
from scripts.prove.tables import options, print_table
from scripts.prove.watching import seconds_until

REQUESTS = 1500  # a line each; a pipe holds 300
START_TIMEOUT_S, STOP_TIMEOUT_S = 60.0, 30.0
# What is done to a stream: as a shell says it, or the name of a file that is made for it.
ATTACKS = {
    "stdin closed": "<&-",
    "stdout closed": ">&-",
    "stdout on a full disk": ">/dev/full",
    "stdout a pipe whose reader is gone": ("stdout", "left"),
    "stdout a stopped terminal": ("stdout", "stopped"),
    "stderr closed": "2>&-",
    "stderr on a full disk": "2>/dev/full",
    "stderr a pipe whose reader is gone": ("stderr", "left"),
    "stderr a pipe that nobody reads": ("stderr", "unread"),
    "stderr a stopped terminal": ("stderr", "stopped"),
    "all closed": "<&- >&- 2>&-",
}


class Seen(NamedTuple):
    """What became of a server."""

    ready: bool
    answered: int  # of REQUESTS
    exit_code: int  # after SIGTERM; -9 had to be killed
    stop_s: float
    log: str  # where it can be read


@contextlib.contextmanager
def stream(kind: str) -> Iterator[int]:
    """The number of a file of this kind, for a process to write to."""
    reading, writing = pty.openpty() if kind == "stopped" else os.pipe()
    if kind == "stopped":
        termios.tcflow(writing, termios.TCOOFF)
    if kind == "left":
        os.close(reading)
    yield writing
    os.close(writing)
    if kind != "left":
        os.close(reading)


def attack(name: str, *flags: str, requests: int = REQUESTS) -> Seen:
    """Start a server whose streams are like this, ask it, and end it."""
    how = ATTACKS[name]
    # Below those that the system gives to others meanwhile.
    port = next(one for one in iter(lambda: random.randrange(20_000, 32_000), 0) if is_free(one))
    command = [sys.executable, "-m", "server", "serve", "--port", str(port), *flags]
    if isinstance(how, str):
        command = ["sh", "-c", f'exec "$@" {how}', "sh", *command]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(os.memfd_create("log"), "w+"))  # noqa: PTH123
        streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": log}
        if not isinstance(how, str):
            streams[how[0]] = stack.enter_context(stream(how[1]))
        server = subprocess.Popen(command, **streams)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=15) as client:
                ready = is_ready(server, client)
                answered = answers(client, requests) if ready else 0
            code, stop_s = ended(server)
        finally:
            server.kill()
            server.wait()
        log.seek(0)
        return Seen(ready, answered, code, stop_s, log.read())


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def is_ready(server: subprocess.Popen[bytes], client: httpx.Client) -> bool:
    """Wait until it takes work, or will not."""

    def takes_work() -> bool:
        return outcome(lambda: client.get("/readyz")) == 200

    seconds_until(lambda: server.poll() is not None or takes_work(), START_TIMEOUT_S)
    return takes_work()


def answers(client: httpx.Client, requests: int) -> int:
    """How many requests are answered, up to the first that is not."""
    for number in range(requests):
        try:
            client.get("/v1/models")
        except httpx.HTTPError:
            return number
    return requests


def ended(server: subprocess.Popen[bytes]) -> tuple[int, float]:
    """The exit code after SIGTERM, and the seconds it took."""
    begun_s = time.monotonic()
    server.send_signal(signal.SIGTERM)
    try:
        code = server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        code = server.wait()
    return code, time.monotonic() - begun_s


def _rows(*flags: str) -> Iterator[tuple[object, ...]]:
    for name in ATTACKS:
        seen = attack(name, *SERVE, *flags)
        last = (seen.log.splitlines() or [""])[-1][:110]
        answered = f"{seen.answered} of {REQUESTS}"
        yield name, "yes" if seen.ready else "no", answered, seen.exit_code, seen.stop_s, last


def main() -> None:
    """Print the table."""
    flags = ("--frontends", str(options(__doc__, frontends=1).frontends))
    columns = ("stream", "ready", "answered", "exit code", "end, s", "last line of the log")
    print_table(columns, _rows(*flags))


if __name__ == "__main__":
    main()
