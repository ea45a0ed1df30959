"""All floods against a server that has 512 MB, which shall not be killed.

    python -m scripts.prove.memory                    # two minutes; as root, in a real cgroup
    python -m scripts.prove.memory --frontends 2 --mb 768

Where no group can be made the server is told what it has, and its processes are watched.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from scripts.prove import floods, slow
from scripts.prove.floods import MIB
from scripts.prove.tables import options, print_table
from server.api.seats import DEFAULT_SHARE
from tests.server_process import ServerProcess

GROUPS = Path("/sys/fs/cgroup/memory")  # of version 1
LOOK_EVERY_S = 0.02


@dataclass
class Room:
    """So much memory, and what a server in it takes."""

    group: Path | None = None
    wrapper: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    at_start_bytes: int = 0
    most_bytes: int = 0  # beside page cache, which can be given back

    def watch(self, server: ServerProcess, over: threading.Event) -> None:
        """Look at what it takes until that is over."""
        process = psutil.Process(server.process.pid)
        self.at_start_bytes = self._taken_bytes(process)
        while not over.wait(LOOK_EVERY_S):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.most_bytes = max(self.most_bytes, self._taken_bytes(process))

    def _taken_bytes(self, process: psutil.Process) -> int:
        if self.group is None:
            family = [process, *process.children(recursive=True)]
            return sum(one.memory_info().rss for one in family)
        stat = (self.group / "memory.stat").read_text().splitlines()
        return int(dict(line.split() for line in stat)["total_rss"])

    def told(self) -> str:
        """What the kernel says of the group."""
        if self.group is None:
            return "no group could be made: this is the resident memory of its processes"
        names = ("memory.max_usage_in_bytes", "memory.failcnt", "memory.oom_control")
        return ", ".join(
            f"{name} {' '.join((self.group / name).read_text().split())}" for name in names
        )


@contextlib.contextmanager
def room(num_bytes: int, groups: Path = GROUPS) -> Iterator[Room]:
    """A group with so much memory, or what stands for one."""
    group = groups / f"embedding-server-prove-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(num_bytes))
        subprocess.run([*_entering(group), "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        with contextlib.suppress(OSError):
            group.rmdir()
        yield Room(flags=["--max-memory-bytes", str(num_bytes // DEFAULT_SHARE)])
        return
    try:
        yield Room(group, wrapper=_entering(group))
    finally:
        while (group / "cgroup.procs").read_text():  # the server was told to end
            time.sleep(LOOK_EVERY_S)
        group.rmdir()


def _entering(group: Path) -> list[str]:
    """What a command is preceded by that shall run in this group."""
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]


@contextlib.contextmanager
def small_server(size: Room, *flags: str) -> Iterator[ServerProcess]:
    """A server in it, whose memory is watched."""
    over = threading.Event()
    with ServerProcess(*slow.FLAGS, *size.flags, *flags, wrapper=size.wrapper) as server:
        watcher = threading.Thread(target=size.watch, args=(server, over))
        watcher.start()
        try:
            yield server
        finally:
            over.set()
            watcher.join()


def _rows(
    server: ServerProcess, size: Room, given: argparse.Namespace
) -> Iterator[tuple[str, str]]:
    yield "the start", f"{size.at_start_bytes / 1e6:.0f}"
    for flood in floods.attack(
        server, keys=True, clients=given.clients, num_bytes=32 * MIB, seconds=given.seconds
    ):
        yield f"{flood.name}: {floods.told(flood.statuses)}", f"{size.most_bytes / 1e6:.0f}"
    for crept in slow.attack(server, given.slow_clients):
        yield crept.kind, f"{size.most_bytes / 1e6:.0f}"


def main() -> None:
    """Print what was sent, and what it took."""
    given = options(__doc__, mb=512, frontends=1, clients=48, slow_clients=1000, seconds=5.0)
    with (
        room(given.mb * MIB) as size,
        small_server(size, "--frontends", str(given.frontends)) as server,
    ):
        try:
            print_table(("after", "most memory so far, MB"), _rows(server, size, given))
        finally:
            code = server.process.poll()
            print(size.told())
            print("The server lives." if code is None else f"The server ended with {code}.")


if __name__ == "__main__":
    main()
