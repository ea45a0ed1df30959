"""The scenarios that compare: what is sent to whom, in which order, and what is written down.

Each is a function that plans steps; a step drives one target once. Rounds come one after the other
and each visits every target, so that a noisy machine hits all of them alike.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from scripts.benchmark.client import (
    Address,
    Request,
    Sample,
    closed_loop,
    embeddings_request,
    open_loop,
    poisson_arrivals,
)
from scripts.benchmark.measuring import (
    MATRIX_PRODUCT,
    Bench,
    Step,
    drive,
    embed_in_process,
    sample_figures,
)
from scripts.benchmark.peers import InProcess
from scripts.benchmark.results import percentiles_ms
from scripts.benchmark.servers import Server
from scripts.benchmark.texts import make_requests

FORWARD_PASS = "forward pass"
INDEXING_TEXTS = 64
INDEXING_CLIENTS = 4
BACKGROUND_CLIENTS = 3
ALONE, TOGETHER = "indexing alone", "indexing with queries"
BUSY_CLIENTS = 16
CONCURRENT_TEXTS = 8
THINK_S = 0.05
ENOUGH_QUERIES = 3_000  # beside indexing, as many are sent as there is time for
LOADS = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of what a server can take


class Work(NamedTuple):
    """So many requests with so many texts of a kind each."""

    kind: str
    requests: int
    texts: int


Target = TypeVar("Target", Server, InProcess, Server | InProcess)


def indexing(bench: Bench) -> Iterator[Step]:
    """Clients index requests of 64 mixed texts; peers compute the same texts in process."""
    work = Work("mixed", bench.scale.indexing_requests, INDEXING_TEXTS)
    return _bulk(bench, "indexing", work, bench.targets, bench.scale.rounds)


def indexing_128(bench: Bench) -> Iterator[Step]:
    """The same with texts of 128 tokens, for comparing with the rate of matrix products."""
    work = Work("exact128", bench.scale.indexing_requests, INDEXING_TEXTS)
    targets: list[Server | InProcess] = [*bench.own_servers, *bench.peers]
    return _bulk(bench, "indexing-128", work, targets, bench.scale.heavy_rounds)


def large_request(bench: Bench) -> Iterator[Step]:
    """One request with as many texts as OpenAI's API allows."""
    work = Work("mixed", 1, bench.scale.large_texts)
    return _bulk(bench, "large-request", work, bench.servers, bench.scale.heavy_rounds)


def query(bench: Bench) -> Iterator[Step]:
    """One client sends short queries; peers compute the same in process, one by one."""
    name, size = "query", bench.scale.queries

    def run(target: Server | InProcess, number: int) -> None:
        if isinstance(target, Server):
            requests = requests_of("query", f"{name} {number}", size, texts=1)
            figures = drive(target, closed_loop(target.address, requests, clients=1))
            bench.record(name, target.name, number, figures)
            return
        texts = [text for (text,) in make_requests("query", f"{name} {number}", size, texts=1)]
        bench.record(name, target.name, number, _latencies(target.ask("each", texts=texts)))
        if target.name == "onnxruntime":
            forward = _latencies(target.ask("forward", texts=texts))
            bench.record(name, FORWARD_PASS, number, forward)

    return _rounds(name, bench.scale.rounds, bench.targets, run)


def busy_query(bench: Bench) -> Iterator[Step]:
    """Sixteen clients send short queries as fast as they are answered."""
    name = "query-16"

    def run(server: Server, number: int) -> None:
        requests = requests_of("query", f"{name} {number}", bench.scale.busy_queries, texts=1)
        figures = drive(server, closed_loop(server.address, requests, BUSY_CLIENTS))
        bench.record(name, server.name, number, figures)

    return _rounds(name, bench.scale.rounds, bench.servers, run)


def query_under_indexing(bench: Bench) -> Iterator[Step]:
    """Three clients index; then they do it again while a fourth sends short queries."""
    name = "query-under-indexing"

    def run(server: Server, number: int) -> None:
        queries = requests_of("query", f"{name} {number}", ENOUGH_QUERIES, texts=1)
        for case in (ALONE, TOGETHER):
            seed = f"{name} {number} {case}"
            bulk = requests_of("mixed", seed, bench.scale.background_requests, texts=INDEXING_TEXTS)
            answered: list[Sample] = []
            asked = queries if case == TOGETHER else []
            load = _with_queries(server.address, bulk, asked, answered)
            figures = drive(server, load)
            if answered:
                measured = sample_figures(answered)
                figures |= {f"query_{key}": value for key, value in measured.items()}
            bench.record(name, server.name, number, figures, case)

    return _rounds(name, bench.scale.heavy_rounds, bench.servers, run)


def concurrency(bench: Bench) -> Iterator[Step]:
    """Throughput by the number of clients, for short queries and for small indexing requests."""
    name, scale = "concurrency", bench.scale

    def run(clients: int, server: Server, number: int) -> None:
        seed = f"{name} {clients} {number}"
        for kind, count, texts in (
            ("mixed", scale.concurrent_requests, CONCURRENT_TEXTS),
            ("query", scale.concurrent_queries, 1),
        ):
            requests = requests_of(kind, seed, count, texts=texts)
            figures = drive(server, closed_loop(server.address, requests, clients))
            case = f"{kind}, {clients} at a time"
            bench.record(name, server.name, number, figures | {"clients": clients}, case)

    for clients in scale.clients:
        run_clients = functools.partial(run, clients)
        yield from _rounds(f"{name} {clients}", scale.sweep_rounds, bench.servers, run_clients)


def load(bench: Bench) -> Iterator[Step]:
    """Latency of short queries that come independently of each other, by their rate."""
    name, scale = "load", bench.scale
    capacity: dict[str, float] = {}

    def measure_capacity(server: Server, number: int) -> None:
        requests = requests_of("query", f"{name} capacity {number}", scale.busy_queries, texts=1)
        figures = drive(server, closed_loop(server.address, requests, BUSY_CLIENTS))
        capacity[server.name] = figures["requests_per_s"]

    def run(share: float, server: Server, number: int) -> None:
        seed = f"{name} {share} {number}"
        rate = bench.arrival_rate or share * capacity[server.name]
        arrivals = poisson_arrivals(rate, max(1, round(rate * scale.load_s)), seed)
        requests = requests_of("query", seed, len(arrivals), texts=1)
        figures = drive(server, open_loop(server.address, requests, arrivals))
        figures["arrivals_per_s"] = rate
        case = f"{rate:.0f} a second" if bench.arrival_rate else f"{share:.0%} of capacity"
        bench.record(name, server.name, number, figures, case)

    if bench.arrival_rate:
        yield from _rounds(name, scale.sweep_rounds, bench.servers, functools.partial(run, 0))
        return
    yield from _rounds(f"{name}, capacity", 1, bench.servers, measure_capacity)
    for share in LOADS:
        run_share = functools.partial(run, share)
        yield from _rounds(f"{name} {share:.0%}", scale.sweep_rounds, bench.servers, run_share)


def _rounds(
    name: str, rounds: int, targets: Sequence[Target], run: Callable[[Target, int], None]
) -> Iterator[Step]:
    for number in range(rounds):
        for target in targets:
            label = f"{name}, round {number + 1} of {rounds}: {target.name}"
            yield Step(label, functools.partial(run, target, number))


def _bulk(
    bench: Bench, name: str, work: Work, targets: Sequence[Server | InProcess], rounds: int
) -> Iterator[Step]:
    clients = min(INDEXING_CLIENTS, work.requests)

    def run(target: Server | InProcess, number: int) -> None:
        if target is bench.matrix_product:
            rate = float(bench.matrix_product.ask("rate")["flops_per_s"])
            bench.record(name, MATRIX_PRODUCT, number, {"gflops_per_s": rate / 1e9})
            return
        texts = make_requests(work.kind, f"{name} {number}", work.requests, texts=work.texts)
        if isinstance(target, Server):
            requests = list(map(embeddings_request, texts))
            figures = drive(target, closed_loop(target.address, requests, clients))
        else:
            figures = embed_in_process(target, texts, clients)
        bench.record(name, target.name, number, figures)

    return _rounds(name, rounds, [bench.matrix_product, *targets], run)


def requests_of(kind: str, seed: str, count: int, *, texts: int) -> list[Request]:
    """Requests made beforehand, see `make_requests`."""
    return list(map(embeddings_request, make_requests(kind, seed, count, texts=texts)))


async def _with_queries(
    address: Address, bulk: Sequence[Request], queries: Sequence[Request], answered: list[Sample]
) -> list[Sample]:
    """Samples of `bulk`; queries go on until it is done, and their samples into `answered`."""
    done = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        indexing = tasks.create_task(closed_loop(address, bulk, BACKGROUND_CLIENTS))
        indexing.add_done_callback(lambda _: done.set())
        asking = tasks.create_task(
            closed_loop(address, queries, clients=1, think_s=THINK_S, stop=done)
        )
    answered += asking.result()
    return indexing.result()


def _latencies(answer: dict[str, list[float]]) -> dict[str, float]:
    return percentiles_ms([seconds * 1e3 for seconds in answer["seconds"]])
