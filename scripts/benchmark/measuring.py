"""What is measured around a load on one target: by this process's clients, or by several processes'.

Rates of several processes are of the answers that came while all clients were at work: what begins
and ends is left out.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import time
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from scripts.benchmark.client import BadAnswer, Sample, run
from scripts.benchmark.results import MB, Figures, percentiles_ms, work_figures
from scripts.benchmark.targets import Peer, Server, Target

LEAD_S = 0.3  # until every process has read what it is to do
SETTLE_S = 0.5  # until all clients are at work
_GPU_QUERY = (
    *("nvidia-smi", "--query-gpu=utilization.gpu,memory.used"),
    *("--format=csv,noheader,nounits", "-lms", "200"),
)


def clocks(target: Target) -> tuple[float, float, float, float]:
    """Seconds on the clock, and of CPU: what a target, this process and all processes took."""
    times = psutil.cpu_times()
    busy_s = sum(times) - times.idle - getattr(times, "iowait", 0.0)
    return time.perf_counter(), target.usage().cpu_s, time.process_time(), busy_s


def cost_figures(target: Target, before: tuple[float, ...], tokens: float) -> Figures:
    """CPU and memory since these `clocks`; of what others took a busy machine is recognised."""
    seconds, cpu_s, own_s, busy_s = np.subtract(clocks(target), before)
    return {
        "cpu_s_per_million_tokens": float(cpu_s / tokens * 1e6),
        "resident_mb": target.usage().resident_bytes / MB,
        "client_cpu_percent": float(100 * own_s / seconds),
        "others_cpu_percent": float(max(0, 100 * (busy_s - cpu_s - own_s) / seconds)),
    }


def drive(server: Server, clients: Coroutine[Any, Any, list[Sample]]) -> Figures:
    """The figures of a load on a server by clients of this process.

    Raises:
        BadAnswer: a request was not answered with vectors.
    """
    told, before = _padding(server), clocks(server)
    samples = run(clients)
    for sample in samples:
        if sample.status != 200:
            raise BadAnswer(f"{server.name} answered {sample.status or 'nothing'}")
    figures = sample_figures(samples)
    figures |= cost_figures(server, before, figures["tokens"])
    computed, padded = np.subtract(_padding(server), told)
    if computed:  # else the server does not tell
        figures["padding_percent"] = float(100 * padded / (computed + padded))
    return figures


def sample_figures(samples: Sequence[Sample]) -> Figures:
    """Rates and latencies, from the first request to the last answer."""
    seconds = max(s.ended for s in samples) - min(s.due for s in samples)
    lengths = [length for sample in samples for length in sample.request.lengths]
    figures = work_figures(lengths, len(samples), seconds)
    late_ms = percentiles_ms([1e3 * (sample.sent - sample.due) for sample in samples])["p99_ms"]
    figures |= percentiles_ms([sample.ms for sample in samples])
    return figures | ({"sent_late_p99_ms": late_ms} if late_ms else {})


def _padding(server: Server) -> tuple[float, float]:
    """Tokens computed so far and padding beside them."""
    page, name = read_metrics(server), "embedding_server_{}_tokens_total"
    return metric(page, name.format("computed")), metric(page, name.format("padding"))


def read_metrics(server: Server) -> str:
    """The page of /metrics; empty where there is none."""
    return (server.request("GET", "/metrics") or b"").decode()


def metric(page: str, name: str, **labels: str) -> float:
    """Sum of the samples with this name and these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


class Load:
    """Processes that load servers together, each a `peers.LoadPeer`."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._peers = peers
        self._made: dict[str, Any] = {}

    def make(self, **asked: Any) -> None:
        """Have each process make requests of its own; arguments as those of `LoadPeer.make`."""
        if self._made != asked:
            for number, peer in enumerate(self._peers):
                peer.tell("make", **asked | {"seed": f"{asked['seed']} {number}"})
            for peer in self._peers:
                peer.hear()
            self._made = asked

    def drive(self, server: Server, connections: int, seconds: float) -> Figures:
        """Figures of what was made, sent over so many connections.

        Raises:
            BenchError: an answer was wrong.
        """
        shares = shares_of(connections, len(self._peers))
        used = self._peers[: len(shares)]
        before = server.usage()
        begin = time.perf_counter() + LEAD_S
        end = begin + SETTLE_S + seconds
        for peer, clients in zip(used, shares, strict=True):
            peer.tell("load", address=server.address, clients=clients, begin=begin, end=end)
        answers = [peer.hear() for peer in used]
        after = server.usage()
        samples = [sample for seen, _ in answers for sample in seen]
        busiest_s = max(cpu_s for _, cpu_s in answers)
        return {
            **window_figures(samples, begin + SETTLE_S, end),
            "server_cpu_ms_per_request": 1e3 * (after.cpu_s - before.cpu_s) / len(samples),
            "server_processes": after.processes,
            "server_mb": after.resident_bytes / MB,
            "busiest_client_cpu_percent": 100 * busiest_s / (end - begin),
        }


def shares_of(connections: int, processes: int) -> list[int]:
    """Connections of each process, as equal as can be; those without any are left out."""
    least, more = divmod(connections, processes)
    shares = [least + (number < more) for number in range(processes)]
    return [share for share in shares if share]


def window_figures(samples: Sequence[Sample], begin: float, end: float) -> Figures:
    """Rates and latencies of the answers that came from `begin` to `end`.

    A request that takes long is counted by the share of its time that lies inside, so that a window
    with few answers gives no lucky rate.
    """
    inside_s = [max(0.0, min(s.ended, end) - max(s.sent, begin)) for s in samples]
    shares = [one / (s.ended - s.sent) for s, one in zip(samples, inside_s, strict=True)]
    lengths = [s.request.lengths for s in samples]
    inside = [s.ms for s in samples if begin <= s.ended <= end]
    per_s = {
        "requests_per_s": sum(shares),
        "texts_per_s": float(np.dot(list(map(len, lengths)), shares)),
        "tokens_per_s": float(np.dot(list(map(sum, lengths)), shares)),
    }
    figures = {"seconds": end - begin, "requests": len(inside)}
    figures |= {name: total / (end - begin) for name, total in per_s.items()}
    return figures | percentiles_ms(inside)


@contextlib.contextmanager
def watched_gpus() -> Iterator[Figures]:
    """What `nvidia-smi` says of the cards meanwhile, once it is over; nothing if it is not there."""
    figures: Figures = {}
    if shutil.which(_GPU_QUERY[0]) is None:
        yield figures
        return
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(_GPU_QUERY, **pipes) as watching:
        try:
            yield figures
        finally:
            watching.terminate()
            figures |= gpu_figures(watching.communicate()[0])


def gpu_figures(said: str) -> Figures:
    """From lines `utilization, MiB`: the median and the most."""
    rows = [line.split(",") for line in said.splitlines() if line.count(",") == 1]
    read = [(float(busy), float(mib)) for busy, mib in rows if busy.strip().isdigit()]
    if not read:
        return {}
    busy, mib = zip(*read, strict=True)
    return {"gpu_busy_percent": statistics.median(busy), "gpu_memory_mb": max(mib) * 2**20 / MB}
