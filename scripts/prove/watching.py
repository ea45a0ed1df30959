"""What a server costs while it is attacked: its memory, and how long its probe is silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
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

    def told(self) -> tuple[str, str]:
        """Two cells of a table: MB, and milliseconds."""
        return f"{self.peak_bytes / 1e6:.0f}", f"{self.longest_silence_ms:.0f}"


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


def seconds_until(condition: Callable[[], object], patience_s: float = 15) -> float | None:
    """How long it took to come true; None if it did not."""
    begun_s = time.monotonic()
    while not condition():
        if time.monotonic() - begun_s > patience_s:
            return None
        time.sleep(0.02)
    return time.monotonic() - begun_s
