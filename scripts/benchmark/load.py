"""A server under the load of several processes, and what is seen meanwhile.

Rates are of the answers that came while all clients were at work: what begins and ends is left out.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from scripts.benchmark.peers import InProcess
from scripts.benchmark.processes import Process, Usage
from scripts.benchmark.results import MB, percentiles_ms
from scripts.benchmark.servers import Server

LEAD_S = 0.3  # until every process has read what it is to do
SETTLE_S = 0.5  # until all clients are at work
_GPU_QUERY = (
    *("nvidia-smi", "--query-gpu=utilization.gpu,memory.used"),
    *("--format=csv,noheader,nounits", "-lms", "200"),
)


class Answered(NamedTuple):
    """One request: when its answer had come, on the clock of `time.perf_counter`, and what it was."""

    ended: float
    ms: float
    texts: int
    tokens: int


class Work(NamedTuple):
    """What each process makes and then sends again and again."""

    kind: str
    texts: int  # a request
    requests: int


class Load:
    """Processes that load servers together."""

    def __init__(self, processes: Sequence[InProcess]) -> None:
        self._processes = processes
        self._made: tuple[Work, str] | None = None

    def make(self, work: Work, seed: str) -> None:
        """Have each process make requests of its own."""
        if self._made == (work, seed):
            return
        for number, process in enumerate(self._processes):
            process.tell("make", **work._asdict(), seed=f"{seed} {number}")
        for process in self._processes:
            process.hear()
        self._made = work, seed

    def run(self, server: Server, connections: int, seconds: float) -> dict[str, float]:
        """Figures of what was made, sent over so many connections.

        Raises:
            BenchError: an answer was wrong.
        """
        shares = shares_of(connections, len(self._processes))
        used = self._processes[: len(shares)]
        before = tree_usage(server.popen.pid)
        begin = time.perf_counter() + LEAD_S
        end = begin + SETTLE_S + seconds
        for process, clients in zip(used, shares, strict=True):
            process.tell("load", address=server.address, clients=clients, begin=begin, end=end)
        answers = [process.hear() for process in used]
        after = tree_usage(server.popen.pid)
        answered = [Answered(*sample) for answer in answers for sample in answer["samples"]]
        busiest_s = max(answer["cpu_s"] for answer in answers)
        return {
            **window_figures(answered, begin + SETTLE_S, end),
            "server_cpu_ms_per_request": 1e3 * (after.cpu_s - before.cpu_s) / len(answered),
            "server_processes": count_processes(server),
            "server_mb": after.resident_bytes / MB,
            "busiest_client_cpu_percent": 100 * busiest_s / (end - begin),
        }


def shares_of(connections: int, processes: int) -> list[int]:
    """Connections of each process, as equal as can be; those without any are left out."""
    least, more = divmod(connections, processes)
    shares = [least + (number < more) for number in range(processes)]
    return [share for share in shares if share]


def window_figures(answered: Sequence[Answered], begin: float, end: float) -> dict[str, float]:
    """Rates and latencies of the answers that came from `begin` to `end`.

    A request that takes long is counted by the share of it that lies inside, so that a window with
    few answers gives no lucky rate.
    """
    inside = [answer for answer in answered if begin <= answer.ended <= end]
    shares = [(answer, _share_inside(answer, begin, end)) for answer in answered]
    seconds = end - begin
    return {
        "seconds": seconds,
        "requests": len(inside),
        "requests_per_s": sum(share for _, share in shares) / seconds,
        "texts_per_s": sum(answer.texts * share for answer, share in shares) / seconds,
        "tokens_per_s": sum(answer.tokens * share for answer, share in shares) / seconds,
        **percentiles_ms([answer.ms for answer in inside]),
    }


def _share_inside(answer: Answered, begin: float, end: float) -> float:
    """Which share of the time that it took lies between `begin` and `end`."""
    sent = answer.ended - answer.ms / 1e3
    inside = min(answer.ended, end) - max(sent, begin)
    return max(0.0, inside / (answer.ended - sent))


class GpuWatch:
    """What `nvidia-smi` says of the cards while something runs; nothing if it is not there."""

    def __init__(self) -> None:
        self._popen: subprocess.Popen[str] | None = None
        self.figures: dict[str, float] = {}

    def __enter__(self) -> Self:
        if shutil.which(_GPU_QUERY[0]):
            self._popen = subprocess.Popen(
                _GPU_QUERY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._popen is not None:
            self._popen.terminate()
            said, _ = self._popen.communicate()
            self.figures = gpu_figures(said)


def gpu_figures(said: str) -> dict[str, float]:
    """From lines `utilization, MiB`: the median and the most."""
    rows = [line.split(",") for line in said.splitlines() if line.count(",") == 1]
    read = [(float(busy), float(mib)) for busy, mib in rows if busy.strip().isdigit()]
    if not read:
        return {}
    busy, mib = zip(*read, strict=True)
    return {
        "gpu_busy_percent": statistics.median(busy),
        "gpu_memory_mb": max(mib) * 2**20 / MB,
    }


def tree_usage(pid: int) -> Usage:
    """CPU seconds and resident memory of a process and all below it, ended children included."""
    cpu_s, resident_bytes = 0.0, 0
    for stat in _tree(pid):
        cpu_s += stat.cpu_s
        resident_bytes += stat.resident_bytes
    return Usage(cpu_s, resident_bytes)


def count_processes(server: Process) -> int:
    """The process itself and all below it."""
    return len(_tree(server.popen.pid))


class _Stat(NamedTuple):
    pid: int
    parent: int
    cpu_s: float  # of itself and of its children that ended
    resident_bytes: int


def _tree(pid: int) -> list[_Stat]:
    found: list[_Stat] = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            found.append(_read_stat(file.read_text()))
        except OSError:  # it has ended meanwhile
            continue
    below = defaultdict(list)
    for stat in found:
        below[stat.parent].append(stat)
    tree = [stat for stat in found if stat.pid == pid]
    for stat in tree:  # grows while it is walked
        tree += below[stat.pid]
    return tree


def _read_stat(text: str) -> _Stat:
    """See proc_pid_stat(5); the name may hold anything, brackets too."""
    pid, rest = text.split(" ", 1)
    fields = rest[rest.rindex(")") + 1 :].split()  # the first is the manual's field 3
    ticks = sum(map(int, fields[11:15]))
    pages = int(fields[21])
    return _Stat(
        int(pid),
        int(fields[1]),
        ticks / os.sysconf("SC_CLK_TCK"),
        pages * os.sysconf("SC_PAGE_SIZE"),
    )
