"""What a server costs while it is attacked: its memory, and how long its probe is silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.server_process import ServerProcess


@dataclass
class Cost:
    """What was seen of a server during one attack."""

    peak_bytes: int = 0  # more resident memory than before
    silences_s: list[float] = field(default_factory=list)  # how long /livez took, each time

    @property
    def longest_silence_ms(self) -> float:
        """The longest answer of /livez."""
        return 1000 * max(self.silences_s, default=0.0)


@contextmanager
def watched(server: ServerProcess) -> Iterator[Cost]:
    """Look at memory and /livez until the context ends."""
    cost = Cost()
    over = threading.Event()
    before = server.resident_bytes()

    def look_at_memory() -> None:
        while not over.wait(0.003):
            cost.peak_bytes = max(cost.peak_bytes, server.resident_bytes() - before)

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not over.wait(0.01):
                begun_s = time.perf_counter()
                client.get("/livez")
                cost.silences_s.append(time.perf_counter() - begun_s)

    watchers = [threading.Thread(target=target) for target in (look_at_memory, ask)]
    for watcher in watchers:
        watcher.start()
    try:
        yield cost
    finally:
        over.set()
        for watcher in watchers:
            watcher.join()
