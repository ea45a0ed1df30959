"""What a target is sent in its turn, and what is recorded. How often and how much: scenarios.toml.

A card computes a thousand times as fast as the processor for which the other scenarios are made:
one client process could not keep it busy, and how long they take would be noise. All scenarios for
GPUs together are made to take less than four minutes.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scripts.benchmark import client
from scripts.benchmark.client import MODEL, BadAnswer, Sample, requests_of
from scripts.benchmark.measuring import (
    Load,
    clocks,
    cost_figures,
    drive,
    metric,
    read_metrics,
    sample_figures,
    watched_gpus,
)
from scripts.benchmark.results import Figures, percentiles_ms, work_figures
from scripts.benchmark.scenario import Turn
from scripts.benchmark.targets import BenchError, Peer, Server
from scripts.benchmark.texts import make_requests

INDEXING_TEXTS = 64
BUSY_CLIENTS = 16
THINK_S = 0.05
ENOUGH_QUERIES = 3_000  # beside indexing, as many are sent as there is time for
LOAD_TEXTS = 2_048  # that each process makes and sends again and again
WARM_UP_S = 0.5
INDEXING_CLIENTS = 16
_STAGES = ("read", "tokenize", "wait", "compute", "serialize")
# The histograms that tell where time goes, by the figure's name.
_HISTOGRAMS = {
    "total_ms": ("request_seconds", {"route": "/v1/embeddings"}),
    **{f"{stage}_ms": ("stage_seconds", {"stage": stage}) for stage in _STAGES},
    "micro_batch_ms": ("micro_batch_seconds", {"model": MODEL}),
    "micro_batch_tokens": ("micro_batch_tokens", {"model": MODEL}),
    "micro_batch_sequences": ("micro_batch_sequences", {"model": MODEL}),
}


def verify(turn: Turn, *, least_cosine: float) -> None:
    """See that the target gives the vectors that the first one gave."""
    (texts,) = make_requests("mixed", "verify", 1, texts=8)
    if isinstance(turn.target, Server):
        body = turn.target.request("POST", "/v1/embeddings", client.embeddings_body(texts))
        if body is None:
            raise BadAnswer(f"{turn.target.name} gives no vectors")
        rows = [base64.b64decode(row["embedding"]) for row in json.loads(body)["data"]]
        vectors = np.array([np.frombuffer(row, "<f4") for row in rows])
    else:
        vectors = turn.peer.ask("vectors", texts=texts)
        if not len(vectors):  # it computes none in this run
            return
    if turn.bench.verified is None:
        turn.bench.verified = vectors.reshape(-1, *vectors.shape[-2:])[0]
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
    return drive(server, client.closed_loop(server.address, made, clients))


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
    before = clocks(peer)
    seconds = peer.ask("embed", clients=clients, times=times)
    figures = work_figures(lengths * times, requests * times, seconds)
    return figures | cost_figures(peer, before, figures["tokens"])


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
    address: client.Address,
    bulk: Sequence[client.Request],
    queries: Sequence[client.Request],
    answered: list[Sample],
) -> list[Sample]:
    """Samples of `bulk`; queries go on until it is done, and their samples into `answered`."""
    done = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        indexing = tasks.create_task(client.closed_loop(address, bulk, clients=3))
        indexing.add_done_callback(lambda _: done.set())
        asking = tasks.create_task(
            client.closed_loop(address, queries, clients=1, think_s=THINK_S, stop=done)
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
    due = client.poisson_arrivals(rate, max(1, round(rate * seconds)), seed)
    requests = requests_of("query", seed, len(due), texts=1)
    figures = drive(turn.server, client.open_loop(turn.server.address, requests, due))
    turn.record(figures | {"arrivals_per_s": rate})


def on_device(turn: Turn, **work: Any) -> None:
    """What torch is asked to measure: the method of the scenario's name."""
    for target, case, figures in turn.peer.ask(turn.row.name, **work):
        turn.record(figures, case, target)


def gpu_indexing(
    turn: Turn, *, each: list[int], texts: int, tuning_texts: int, at_least_s: float
) -> None:
    """The same texts by the engine, however many make a request; by another all at once, beside it."""
    turn.peer.ask("make", kind="mixed", seed="indexing warm up", requests=1, texts=tuning_texts)
    for _ in range(2):  # sentence-transformers chooses its batch size; first it must be warm
        turn.peer.ask("warm_up")
    is_engine, figures = turn.target.name == "engine", Figures()
    for one in each:
        case = f"{one} texts a request"
        if is_engine or not figures:
            size: Any = {"texts": one if is_engine else each[-1], "at_least_s": at_least_s}
            size |= {"requests": texts // size["texts"], "clients": INDEXING_CLIENTS}
            figures = embed(turn.peer, "mixed", "indexing", **size)
        told = dict(figures)
        engine = turn.bench.results.by_round(turn.row.name, "engine", "tokens_per_s", case)
        if engine and not is_engine:
            told["engine_through_this"] = engine[turn.round] / figures["tokens_per_s"]
        turn.record(told, case)


def warm_up_by_load(turn: Turn, *, connections: int) -> None:
    """Have a server compute what is like that which is to come."""
    for texts in (1, INDEXING_TEXTS):
        _made(turn, texts).drive(turn.server, connections, WARM_UP_S)


def http(turn: Turn, *, texts: int, connections: int, seconds: float) -> None:
    """Several client processes index, or send short queries."""
    load = _made(turn, texts)
    with watched_gpus() as seen:
        figures = load.drive(turn.server, connections, seconds)
    turn.record(figures | seen)


def profile_under_load(turn: Turn, *, texts: int, connections: int, seconds: float) -> None:
    """Where a request's time goes under load, from the sums on /metrics."""
    load = _made(turn, texts)
    before = read_metrics(turn.server)
    seen = load.drive(turn.server, connections, seconds)
    figures = stage_figures(before, read_metrics(turn.server))
    if "p50_ms" in seen:
        figures = {"seen by the client, p50_ms": seen["p50_ms"], **figures}
    turn.record(figures)


def _made(turn: Turn, texts: int) -> Load:
    """The client processes, with requests of so many texts; one text is a short query."""
    kind = "query" if texts == 1 else "mixed"
    seed = f"{turn.row.name} {kind} {texts}"
    turn.bench.load.make(kind=kind, seed=seed, requests=LOAD_TEXTS // texts, texts=texts)
    return turn.bench.load


def stage_figures(before: str, after: str) -> Figures:
    """Means of what was observed between two pages of /metrics; seconds as milliseconds."""
    figures = {}
    for name, (series, labels) in _HISTOGRAMS.items():
        parts = [f"embedding_server_{series}_{part}" for part in ("sum", "count")]
        total, count = (metric(after, p, **labels) - metric(before, p, **labels) for p in parts)
        if count:
            figures[name] = total / count * (1e3 if name.endswith("_ms") else 1)
    return figures
