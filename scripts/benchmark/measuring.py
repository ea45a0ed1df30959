"""One target driven once: what is measured around a load, and the targets of a run."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

import numpy as np
import uvloop
from numpy.typing import NDArray

from scripts.benchmark import client
from scripts.benchmark.client import Sample, embeddings_request
from scripts.benchmark.peers import InProcess
from scripts.benchmark.processes import BenchError, Process
from scripts.benchmark.results import (
    MB,
    Record,
    Results,
    latency_figures,
    percentile,
    work_figures,
)
from scripts.benchmark.servers import OwnServer, Server
from scripts.benchmark.texts import make_requests, num_tokens

OURS = "ours"
GUARDED = "ours, with keys"
MATRIX_PRODUCT = "matrix product"
SAME_COSINE = 0.9999


@dataclass(frozen=True, slots=True)
class Scale:
    """How much work each scenario is."""

    rounds: int
    heavy_rounds: int  # where a round takes a minute
    sweep_rounds: int  # where many settings are gone through
    indexing_requests: int
    large_texts: int
    queries: int
    busy_queries: int
    background_requests: int
    clients: tuple[int, ...]
    concurrent_requests: int
    concurrent_queries: int
    load_s: float
    flood_s: float
    soak_requests: int

    def with_rounds(self, rounds: int) -> Scale:
        """The same work in another number of rounds."""
        return dataclasses.replace(self, rounds=rounds, heavy_rounds=rounds, sweep_rounds=rounds)


FULL = Scale(
    rounds=5,
    heavy_rounds=3,
    sweep_rounds=1,
    indexing_requests=8,
    large_texts=2048,
    queries=300,
    busy_queries=1000,
    background_requests=12,
    clients=(1, 2, 4, 8, 16, 32),
    concurrent_requests=64,
    concurrent_queries=320,
    load_s=8,
    flood_s=60,
    soak_requests=100_000,
)
QUICK = Scale(
    rounds=1,
    heavy_rounds=1,
    sweep_rounds=1,
    indexing_requests=4,
    large_texts=256,
    queries=50,
    busy_queries=160,
    background_requests=3,
    clients=(1, 4, 16),
    concurrent_requests=16,
    concurrent_queries=64,
    load_s=2,
    flood_s=5,
    soak_requests=4_000,
)


class Step(NamedTuple):
    """A piece of a scenario, for the progress bar to name."""

    label: str
    run: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Bench:
    """The targets of a run, how much is asked of them, and the results so far."""

    servers: Sequence[Server]  # ours first
    peers: Sequence[InProcess]
    matrix_product: InProcess
    results: Results
    scale: Scale
    arrival_rate: float | None
    serve_flags: Sequence[str]

    def record(
        self, scenario: str, target: str, number: int, figures: dict[str, float], case: str = ""
    ) -> None:
        """Keep one target's figures of one round."""
        self.results.records.append(Record(scenario, case, target, number, figures))

    @property
    def own_servers(self) -> list[Server]:
        """Ours, and a second one of ours if there is one."""
        return [server for server in self.servers if isinstance(server, OwnServer)]

    @property
    def targets(self) -> list[Server | InProcess]:
        """Servers and peers, ours first."""
        return [*self.servers, *self.peers]


class Meter:
    """What a process, this one and all others took, from its making on."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._before = self._now()

    def _now(self) -> tuple[float, float, float, float]:
        import psutil  # not wanted for the scenarios on GPUs

        times = psutil.cpu_times()
        busy_s = sum(times) - times.idle - getattr(times, "iowait", 0.0)
        return time.perf_counter(), self._process.usage().cpu_s, time.process_time(), busy_s

    def figures(self, tokens: float) -> dict[str, float]:
        """CPU and memory; of what others took a busy machine is recognised."""
        seconds, cpu_s, own_s, busy_s = np.subtract(self._now(), self._before)
        return {
            "cpu_s_per_million_tokens": float(cpu_s / tokens * 1e6),
            "resident_mb": self._process.usage().resident_bytes / MB,
            "client_cpu_percent": float(100 * own_s / seconds),
            "others_cpu_percent": float(max(0, 100 * (busy_s - cpu_s - own_s) / seconds)),
        }


def drive(server: Server, load: Coroutine[Any, Any, list[Sample]]) -> dict[str, float]:
    """The figures of a load on a server."""
    padding_before, meter = padding(server), Meter(server)
    try:
        samples = uvloop.run(load)
    except ExceptionGroup as group:
        raise client.BadAnswer(f"{server.name}: {first_error(group)}") from group
    for sample in samples:
        if sample.status != HTTPStatus.OK:
            raise client.BadAnswer(f"{server.name} answered {sample.status or 'nothing'}")
    figures = sample_figures(samples)
    figures |= meter.figures(figures["tokens"])
    padding_after = padding(server)
    if padding_before is not None and padding_after is not None:
        computed, padded = np.subtract(padding_after, padding_before)
        figures["padding_percent"] = float(100 * padded / (computed + padded))
    return figures


def first_error(error: Exception) -> Exception:
    """What is at the bottom of a group of errors."""
    return first_error(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


def sample_figures(samples: Sequence[Sample]) -> dict[str, float]:
    """Rates and latencies, from the first request to the last answer."""
    seconds = max(s.ended for s in samples) - min(s.due for s in samples)
    lengths = [length for sample in samples for length in sample.request.lengths]
    figures = work_figures(lengths, len(samples), seconds) | latency_figures(samples)
    late_ms = percentile([(sample.sent - sample.due) * 1e3 for sample in samples], 99)
    return figures | ({"sent_late_p99_ms": late_ms} if late_ms else {})


def padding(server: Server) -> tuple[float, float] | None:
    """Tokens computed so far and padding beside them; None where the server does not tell."""
    page = server.page("/metrics")
    if page is None:
        return None
    computed, padded = (
        [float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)]
        for name in (
            "embedding_server_computed_tokens_total",
            "embedding_server_padding_tokens_total",
        )
    )
    return (sum(computed), sum(padded)) if computed else None


def embed_in_process(peer: InProcess, requests: list[list[str]], clients: int) -> dict[str, float]:
    """The figures of a peer that computes the texts of all requests."""
    meter = Meter(peer)
    seconds = float(peer.ask("embed", requests=requests, clients=clients)["seconds"])
    lengths = [num_tokens(text) for request in requests for text in request]
    figures = work_figures(lengths, len(requests), seconds)
    return figures | meter.figures(figures["tokens"])


def verify_and_warm_up(bench: Bench) -> Iterator[Step]:
    """See that all targets give the same vectors, and have them compute what is to come."""
    (texts,) = make_requests("mixed", "verify", 1, texts=8)
    bulk = make_requests("mixed", "warm up", 4, texts=64)
    queries = make_requests("query", "warm up", 50, texts=1)
    reference: list[NDArray[np.float32]] = []

    def compare(name: str, vectors: NDArray[np.float32]) -> None:
        reference.append(vectors)
        if vectors.shape != reference[0].shape:
            raise BenchError(f"{name} gives vectors {vectors.shape}, not {reference[0].shape}")
        cosine = float((vectors * reference[0]).sum(axis=1).min())
        if not cosine > SAME_COSINE:
            raise BenchError(f"{name} gives other vectors than {OURS}: cosine {cosine:.5f}")

    def warm_server(server: Server) -> None:
        request = embeddings_request(texts)
        response = uvloop.run(client.ask(server.address, request))
        client.check(request, response)
        data = json.loads(response.body)["data"]
        rows = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in data]
        compare(server.name, np.stack(rows))
        for requests, clients in ((bulk, 4), (queries, 1)):
            made = [embeddings_request(request) for request in requests]
            uvloop.run(client.closed_loop(server.address, made, clients))

    def warm_peer(peer: InProcess) -> None:
        vectors = peer.ask("vectors", texts=texts)["vectors"]
        compare(peer.name, np.array(vectors, np.float32))
        peer.ask("warm up", requests=bulk)

    for server in bench.servers:
        yield Step(f"warm up: {server.name}", functools.partial(warm_server, server))
    for peer in bench.peers:
        yield Step(f"warm up: {peer.name}", functools.partial(warm_peer, peer))
