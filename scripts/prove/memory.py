"""All floods against a server that has 512 MB: is it killed, and how near does it come?

    python -m scripts.prove.memory                  # a minute; as root, in a cgroup of its own
    python -m scripts.prove.memory --frontends 2 --mb 768

Where no group can be made the server is told what it has, and its processes are watched.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup/memory")  # version 1
SHARE = 4  # one part in so many is for requests, as the server itself takes it from a group


@dataclass
class Room:
    """So much memory, and what a server in it used."""

    num_bytes: int
    group: Path | None
    wrapper: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    most_bytes: int = 0  # page cache counts, in a group
    kills: int = 0

    def look(self) -> None:
        """See what the group has seen."""
        if self.group is None:
            return
        self.most_bytes = int((self.group / "memory.max_usage_in_bytes").read_text())
        told = (self.group / "memory.oom_control").read_text().split()
        self.kills = int(told[told.index("oom_kill") + 1])

    @property
    def objects_bytes(self) -> int:
        """What cannot be given back, as page cache can."""
        assert self.group is not None
        return int(dict(map(str.split, self._stat()))["total_rss"])

    def _stat(self) -> list[str]:
        assert self.group is not None
        return (self.group / "memory.stat").read_text().splitlines()


@contextlib.contextmanager
def room(num_bytes: int) -> Iterator[Room]:
    """A group with so much memory, or what stands for one."""
    group = GROUPS / f"embedding-server-prove-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(num_bytes))
    except OSError:
        yield Room(num_bytes, None, flags=["--max-memory-bytes", str(num_bytes // SHARE)])
        return
    enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    try:
        yield Room(num_bytes, group, wrapper=["sh", "-c", enter, "sh"])
    finally:
        while (group / "cgroup.procs").read_text():  # the server was told to end
            time.sleep(0.05)
        group.rmdir()
