"""The scenarios that compare targets on a CPU: what one is sent in its turn, and what is recorded.

How often and how much: scenarios.toml.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Sequence

import numpy as np

from scripts.benchmark.client import (
    Address,
    BadAnswer,
    Request,
    Sample,
    closed_loop,
    embeddings_body,
    open_loop,
    poisson_arrivals,
    requests_of,
)
from scripts.benchmark.measuring import Meter, drive, sample_figures
from scripts.benchmark.results import Figures, percentiles_ms, work_figures
from scripts.benchmark.scenario import Turn
from scripts.benchmark.targets import BenchError, Peer, Server
from scripts.benchmark.texts import make_requests

INDEXING_TEXTS = 64
BUSY_CLIENTS = 16
THINK_S = 0.05
ENOUGH_QUERIES = 3_000  # beside indexing, as many are sent as there is time for


def verify(turn: Turn, *, least_cosine: float) -> None:
    """See that the target gives the vectors that the first one gave."""
    (texts,) = make_requests("mixed", "verify", 1, texts=8)
    if isinstance(turn.target, Server):
        body = turn.target.request("POST", "/v1/embeddings", embeddings_body(texts))
        if body is None:
            raise BadAnswer(f"{turn.target.name} gives no vectors")
        rows = [base64.b64decode(row["embedding"]) for row in json.loads(body)["data"]]
        vectors = np.array([np.frombuffer(row, "<f4") for row in rows])
    else:
        vectors = turn.peer.ask("vectors", texts=texts)
        if not len(vectors):  # it computes none in this run
            return
    if turn.bench.verified is None:
        turn.bench.verified = vectors
    expected = turn.bench.verified
    if vectors.shape[-2:] != expected.shape:
        raise BenchError(f"{turn.target.name} gives vectors {vectors.shape}, not {expected.shape}")
    lengths = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(expected, axis=-1)
    cosine = float(((vectors * expected).sum(axis=-1) / lengths).min())
    if not cosine > least_cosine:
        raise BenchError(f"{turn.target.name} gives other vectors: cosine {cosine:.5f}")


def warm_up(turn: Turn) -> None:
    """Have the target compute what is like that which is to come."""
    if isinstance(turn.target, Server):
        send(turn.target, "mixed", "warm up", requests=4, texts=INDEXING_TEXTS, clients=4)
        send(turn.target, "query", "warm up", requests=50, texts=1, clients=1)
    else:
        turn.peer.ask("make", kind="mixed", seed="warm up", requests=4, texts=INDEXING_TEXTS)
        turn.peer.ask("warm_up")


def send(
    server: Server, kind: str, seed: str, *, requests: int, texts: int, clients: int
) -> Figures:
    """The figures of a server under requests of clients that wait for each answer."""
    made = requests_of(kind, seed, requests, texts=texts)
    return drive(server, closed_loop(server.address, made, clients))


def embed(
    peer: Peer,
    kind: str,
    seed: str,
    *,
    requests: int,
    texts: int,
    clients: int,
    at_least_s: float = 0,
) -> Figures:
    """The figures of a peer that computes texts, again and again until it took `at_least_s`."""
    lengths = peer.ask("make", kind=kind, seed=seed, requests=requests, texts=texts)
    times = 1
    if at_least_s:  # a warm-up as well
        times = math.ceil(at_least_s / peer.ask("embed", clients=clients))
    meter = Meter(peer)
    seconds = peer.ask("embed", clients=clients, times=times)
    figures = work_figures(lengths * times, requests * times, seconds)
    return figures | meter.figures(figures["tokens"])


def indexing(turn: Turn, *, kind: str = "mixed", **size: int) -> None:
    """Clients send texts; peers compute the same ones in process. Beside: matrix products."""
    if isinstance(turn.target, Server):
        turn.record(send(turn.target, kind, turn.seed, **size))
    elif turn.target.name == "matrix product":
        turn.record({"gflops_per_s": turn.peer.ask("rate") / 1e9})
    else:
        turn.record(embed(turn.peer, kind, turn.seed, **size))


def query(turn: Turn, *, requests: int, clients: int) -> None:
    """Clients send short queries; peers compute the same in process, one by one."""
    if isinstance(turn.target, Server):
        size = {"requests": requests, "texts": 1, "clients": clients}
        turn.record(send(turn.target, "query", turn.seed, **size))
        return
    turn.peer.ask("make", kind="query", seed=turn.seed, requests=requests, texts=1)
    turn.record(percentiles_ms([1e3 * seconds for seconds in turn.peer.ask("each")]))
    if turn.target.name == "onnxruntime":
        passes_ms = [1e3 * seconds for seconds in turn.peer.ask("forward")]
        turn.record(percentiles_ms(passes_ms), target="forward pass")


def query_under_indexing(turn: Turn, *, requests: int) -> None:
    """Three clients index; then they do it again while a fourth sends short queries."""
    queries = requests_of("query", turn.seed, ENOUGH_QUERIES, texts=1)
    for case, asked in (("indexing alone", []), ("indexing with queries", queries)):
        bulk = requests_of("mixed", f"{turn.seed} {case}", requests, texts=INDEXING_TEXTS)
        answered: list[Sample] = []
        figures = drive(turn.server, _with_queries(turn.server.address, bulk, asked, answered))
        if answered:
            measured = sample_figures(answered)
            figures |= {f"query_{name}": value for name, value in measured.items()}
        turn.record(figures, case)


async def _with_queries(
    address: Address, bulk: Sequence[Request], queries: Sequence[Request], answered: list[Sample]
) -> list[Sample]:
    """Samples of `bulk`; queries go on until it is done, and their samples into `answered`."""
    done = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        indexing = tasks.create_task(closed_loop(address, bulk, clients=3))
        indexing.add_done_callback(lambda _: done.set())
        asking = tasks.create_task(
            closed_loop(address, queries, clients=1, think_s=THINK_S, stop=done)
        )
    answered += asking.result()
    return indexing.result()


def concurrency(turn: Turn, *, clients: int, requests: int, queries: int) -> None:
    """Throughput of so many clients, for small indexing requests and for short queries."""
    seed = f"{turn.row.name} {clients} {turn.round}"
    for kind, count, texts in (("mixed", requests, 8), ("query", queries, 1)):
        figures = send(turn.server, kind, seed, requests=count, texts=texts, clients=clients)
        turn.record(figures | {"clients": clients}, f"{kind}, {turn.case}")


def arrivals(turn: Turn, *, share: float, seconds: float, capacity_requests: int) -> None:
    """Latency of short queries that come independently of each other, at a share of the capacity."""
    capacities, name = turn.bench.capacities, turn.target.name
    if name not in capacities:
        size = {"requests": capacity_requests, "texts": 1, "clients": BUSY_CLIENTS}
        seen = send(turn.server, "query", f"{turn.row.name} capacity 0", **size)
        capacities[name] = seen["requests_per_s"]
    rate = share * capacities[name]
    seed = f"{turn.row.name} {share} {turn.round}"
    due = poisson_arrivals(rate, max(1, round(rate * seconds)), seed)
    requests = requests_of("query", seed, len(due), texts=1)
    figures = drive(turn.server, open_loop(turn.server.address, requests, due))
    turn.record(figures | {"arrivals_per_s": rate})
