"""Processes that are stopped or killed, and a device that fails for good: what is seen, as a table.

    python -m scripts.prove.stopped            # four minutes

Starts servers of its own on loopback, stops, kills and breaks their processes, and ends them.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from scripts.prove.clients import SERVE, embed, outcome
from scripts.prove.tables import options, print_table
from scripts.prove.watching import seconds_until
from tests.faults.faults import with_faults
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess

PATIENCE_S = 90.0


@dataclass
class Target:
    """A server under attack, and what is seen of it."""

    server: ServerProcess
    faults: Path
    seen: dict[str, object] = field(default_factory=dict)

    @property
    def engine(self) -> psutil.Process:
        """The process that was started."""
        return psutil.Process(self.server.process.pid)

    def get(self, path: str) -> int | str:
        """The status, or what the connection ended with; each time on a connection of its own."""
        return outcome(lambda: httpx.get(self.server.url + path, timeout=5))

    def embed(self) -> int | str:
        """The same for a short text."""
        return outcome(lambda: embed(self.server))

    def counted(self, but: psutil.Process) -> float:
        """Answered requests, as another front end than this one has them on /metrics."""
        answer = self.server.answer_of_another(f"{self.server.url}/metrics", but)
        page = MetricsPage(answer.content)
        return page.total("requests_total", route="/v1/embeddings", status="200")

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait for it; note after how many seconds it came, or that it did not."""
        seconds = seconds_until(condition, PATIENCE_S)
        self.seen[what] = "never" if seconds is None else round(seconds, 1)

    def until_ended(self) -> None:
        """Wait until it has ended."""
        self.until("ended after, s", lambda: self.server.process.poll() is not None)
        self.seen |= {"exit code": self.server.process.poll(), "livez": self.get("/livez")}


def stop_engine(target: Target) -> None:
    """Stop the engine process, and have it go on."""
    target.engine.suspend()
    waiting = threading.Thread(target=lambda: target.seen.update(waiting=target.embed()))
    waiting.start()
    target.until("readyz 503 after, s", lambda: target.get("/readyz") == 503)
    waiting.join()
    target.seen |= {"request": target.embed(), "livez": target.get("/livez")}
    target.engine.resume()
    target.until("ready again after, s", lambda: target.get("/readyz") == 200)
    target.seen["request then"] = target.embed()


def lose_engine(target: Target) -> None:
    """Stop the engine process for good."""
    target.engine.suspend()
    target.until_ended()


def stop_front_end(target: Target) -> None:
    """Stop a front end for good."""
    stopped = target.engine.children()[0]
    stopped.suspend()
    target.until("taken out after, s", lambda: not stopped.is_running())
    target.until("replaced after, s", lambda: len(target.engine.children()) == 2)
    target.seen["requests then"] = sorted({target.embed() for _ in range(20)}, key=str)


def kill_front_end(target: Target) -> None:
    """Kill a front end that has told what it counted, which it does once a second."""
    killed = target.engine.children()[0]
    before = target.counted(but=killed)
    target.seen["answered"] = [target.embed() for _ in range(20)].count(200)
    target.until("told after, s", lambda: target.counted(but=killed) - before == 20)
    killed.kill()
    target.until("replaced after, s", lambda: len({*target.engine.children()} - {killed}) == 2)
    target.until("all counted after, s", lambda: target.counted(but=killed) - before >= 20)
    target.seen["counted"] = target.counted(but=killed) - before


def stop_all(target: Target) -> None:
    """Stop all processes for 15 s, as Control-Z does."""
    processes = [target.engine, *target.engine.children()]
    for process in processes:
        process.suspend()
    time.sleep(15)
    for process in processes:
        process.resume()
    time.sleep(3)  # ticks of theirs
    same = set(processes[1:]) == set(target.engine.children())
    target.seen |= {"the same processes": same, "request": target.embed()}


def break_device(target: Target) -> None:
    """Have every pass fail from now on."""
    (target.faults / "fails").touch()
    target.seen["requests"] = [target.embed() for _ in range(4)]
    target.until_ended()


ATTACKS: Mapping[str, Callable[[Target], None]] = {
    "front end killed": kill_front_end,  # the first: it counts all requests of its server
    "front end stopped": stop_front_end,
    "engine stopped, then continued": stop_engine,
    "all stopped for 15 s": stop_all,
    "engine stopped for good": lose_engine,
    "device fails for good": break_device,
    "device fails for good, two front ends": break_device,
}


def attack(
    *names: str, frontends: int = 2, waits: dict[str, float] | None = None
) -> dict[str, dict[str, object]]:
    """What is seen of a server of their own under each of these attacks, in turn.

    Args:
        waits: see `with_faults`.
    """
    seen = {}
    flags = ("--frontends", str(frontends), "--threads", "1", *SERVE)
    with tempfile.TemporaryDirectory() as folder:
        faults = with_faults(Path(folder), waits)
        with ServerProcess(*flags, environment=faults) as server:
            for name in names:
                target = Target(server, Path(folder))
                ATTACKS[name](target)
                seen[name] = target.seen
    return seen


def _rows() -> Iterator[tuple[str, str]]:
    *harmless, device, devices = ATTACKS
    for names, frontends in ((harmless, 2), ([device], 1), ([devices], 2)):
        for name, found in attack(*names, frontends=frontends).items():
            yield name, ", ".join(f"{what}: {value}" for what, value in found.items())


def main() -> None:
    """Print the table."""
    options(__doc__)
    print_table(("attack", "what was seen"), _rows())


if __name__ == "__main__":
    main()
