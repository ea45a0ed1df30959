"""What a target is sent in its turn, and what is recorded. How often and how much: scenarios.toml.

A card computes a thousand times as fast as the processor for which the other scenarios are made:
one client process could not keep it busy, and how long they take would be noise. All scenarios for
GPUs together are made to take less than four minutes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scripts.benchmark import client, measuring
from scripts.benchmark.client import MODEL, BadAnswer, Sample, requests_of
from scripts.benchmark.peers import Vectors
from scripts.benchmark.results import Figures, percentiles_ms, work_figures
from scripts.benchmark.scenario import Turn
from scripts.benchmark.targets import BenchError, Peer, Server, Target
from scripts.benchmark.texts import make_requests, num_tokens
from server.inference.agreement import agreement_of

INDEXING_TEXTS = 64
BUSY_CLIENTS = 16
THINK_S = 0.05
ENOUGH_QUERIES = 3_000  # beside indexing, as many are sent as there is time for
LOAD_TEXTS = 2_048  # that each process makes and sends again and again
# Whose forward pass is told apart from the rest of its work.
PASSES = {
    "onnxruntime": "forward pass",
    "openvino-bfloat16": "forward pass, bfloat16",
    "openvino-int8": "forward pass, int8",
}
_STAGES = ("read", "tokenize", "wait", "compute", "serialize")
# The histograms that tell where time goes, by the figure's name.
_HISTOGRAMS = {
    "total_ms": ("request_seconds", {"route": "/v1/embeddings"}),
    **{f"{stage}_ms": ("stage_seconds", {"stage": stage}) for stage in _STAGES},
    "micro_batch_ms": ("micro_batch_seconds", {"model": MODEL}),
    "micro_batch_tokens": ("micro_batch_tokens", {"model": MODEL}),
    "micro_batch_sequences": ("micro_batch_sequences", {"model": MODEL}),
}


def vectors_of(body: bytes) -> Vectors:
    """The vectors of an answer."""
    rows = [base64.b64decode(row["embedding"]) for row in json.loads(body)["data"]]
    return np.array([np.frombuffer(row, "<f4") for row in rows])


def verify(turn: Turn, *, least_cosines: dict[str, float]) -> None:
    """See that the target gives the vectors that the first one gave, as near as its dtype allows."""
    name = turn.target.name
    (texts,) = make_requests("mixed", "verify", 1, texts=8)
    if isinstance(turn.target, Server):
        body = turn.target.request("POST", "/v1/embeddings", client.embeddings_body(texts))
        if body is None:
            raise BadAnswer(f"{name} gives no vectors")
        vectors = vectors_of(body)
    else:
        vectors = turn.peer.ask("compute", requests=[texts])
    turn.bench.verified = turn.bench.verified or (vectors, turn.target.dtype)
    expected, dtype = turn.bench.verified
    if vectors.shape != expected.shape:
        raise BenchError(f"{name} gives vectors {vectors.shape}, not {expected.shape}")
    cosine = agreement_of(vectors, expected).min_cosine
    if not cosine > min(least_cosines[dtype], least_cosines[turn.target.dtype]):
        raise BenchError(f"{name} gives other vectors: cosine {cosine:.5f}")


def company(turn: Turn, *, texts: int, together: int, requests: int) -> None:
    """Vectors of texts that are alone, against those in company while three clients index."""
    bulk = requests_of("mixed", f"{turn.seed} load", requests, texts=INDEXING_TEXTS)
    asked = make_requests("mixed", turn.seed, texts // together, texts=together)
    alone, beside = asyncio.run(_alone_and_beside(turn.server.address, asked, bulk))
    difference = np.abs(alone - beside).max(axis=1)
    turn.record(
        {
            "texts": len(alone),
            "texts_that_differ": int(np.count_nonzero(difference)),
            "largest_difference_billionths": 1e9 * float(difference.max()),
        }
    )


async def _alone_and_beside(
    address: client.Address, asked: list[list[str]], bulk: Sequence[client.Request]
) -> tuple[Vectors, Vectors]:
    """Each text's vector in a request of its own, then all while `bulk` is computed."""

    async def ask(texts: list[str]) -> Vectors:
        with contextlib.closing(await client.Connection.open(address)) as connection:
            answer = await connection.send(client.embeddings_request(texts).payload)
        return vectors_of(answer.body)

    alone = [await ask([text]) for texts in asked for text in texts]
    loading = asyncio.create_task(client.closed_loop(address, bulk, clients=3))
    beside = await asyncio.gather(*map(ask, asked))
    await loading
    return np.concatenate(alone), np.concatenate(beside)


def warm_up(turn: Turn, *, clients: int, **size: int) -> None:
    """Have the target compute what is like that which is to come."""
    if isinstance(turn.target, Server):
        embed(turn.target, "mixed", "warm up", clients=clients, **size)
        embed(turn.target, "query", "warm up", clients=1, requests=50, texts=1)
    else:
        turn.peer.ask("warm_up", requests=make_requests("mixed", "warm up", **size))


def embed(
    target: Target, kind: str, seed: str, *, clients: int, at_least_s: float = 0, **size: int
) -> Figures:
    """The figures of requests by clients that wait for each answer; a peer computes them in process.

    A peer does it again and again until it took `at_least_s`.
    """
    requests, times = make_requests(kind, seed, **size), 1
    if isinstance(target, Server):
        made = list(map(client.embeddings_request, requests))
        return measuring.drive(target, client.closed_loop(target.address, made, clients))
    assert isinstance(target, Peer)
    if at_least_s:  # a warm-up as well
        times = math.ceil(at_least_s / target.ask("embed", requests=requests, clients=clients))
    before = measuring.clocks(target)
    seconds = target.ask("embed", requests=requests, clients=clients, times=times)
    lengths = [num_tokens(text) for request in requests for text in request]
    figures = work_figures(lengths * times, len(requests) * times, seconds)
    return figures | measuring.cost_figures(target, before, figures["tokens"])


def indexing(turn: Turn, *, kind: str = "mixed", **size: int) -> None:
    """Clients send texts; peers compute the same ones in process. Beside: matrix products."""
    if turn.target.name == "matrix product":
        turn.record({"gflops_per_s": turn.peer.ask("rate") / 1e9})
    else:
        turn.record(embed(turn.target, kind, turn.seed, **size))


def indexing_beside_engine(turn: Turn, **size: Any) -> None:
    """The engine computes texts; another computes the same, and is compared with it."""
    figures = embed(turn.peer, "mixed", turn.seed, **size)
    engine = turn.bench.results.by_round(turn.row.name, "engine", "tokens_per_s", turn.case)
    if turn.round in engine:
        figures["engine_through_this"] = engine[turn.round] / figures["tokens_per_s"]
    turn.record(figures)


def query(turn: Turn, *, requests: int, clients: int) -> None:
    """Clients send short queries; peers compute the same in process, one by one."""
    size = {"requests": requests, "texts": 1}
    if isinstance(turn.target, Server):
        turn.record(embed(turn.target, "query", turn.seed, clients=clients, **size))
        return
    made = make_requests("query", turn.seed, **size)
    turn.record(percentiles_ms([1e3 * s for s in turn.peer.ask("each", requests=made)]))
    if turn.target.name in PASSES:
        passes_ms = [1e3 * seconds for seconds in turn.peer.ask("forward", requests=made)]
        turn.record(percentiles_ms(passes_ms), target=PASSES[turn.target.name])


def query_under_indexing(turn: Turn, *, requests: int) -> None:
    """Three clients index; then they do it again while a fourth sends short queries."""
    queries = requests_of("query", turn.seed, ENOUGH_QUERIES, texts=1)
    for case, asked in (("indexing alone", []), ("indexing with queries", queries)):
        bulk = requests_of("mixed", f"{turn.seed} {case}", requests, texts=INDEXING_TEXTS)
        answered: list[Sample] = []
        figures = measuring.drive(
            turn.server, _with_queries(turn.server.address, bulk, asked, answered)
        )
        if answered:
            measured = measuring.sample_figures(answered)
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
    asking = asyncio.create_task(
        client.closed_loop(address, queries, clients=1, think_s=THINK_S, stop=done)
    )
    samples = await client.closed_loop(address, bulk, clients=3)
    done.set()
    answered += await asking
    return samples


def concurrency(turn: Turn, *, clients: int, requests: int, queries: int) -> None:
    """Throughput of so many clients, for small indexing requests and for short queries."""
    seed = f"{turn.row.name} {clients} {turn.round}"
    for kind, count, texts in (("mixed", requests, 8), ("query", queries, 1)):
        figures = embed(turn.server, kind, seed, requests=count, texts=texts, clients=clients)
        turn.record(figures | {"clients": clients}, f"{kind}, {turn.case}")


def arrivals(turn: Turn, *, percents: list[int], seconds: float, capacity_requests: int) -> None:
    """Latency of short queries that come independently of each other, at shares of the capacity."""
    name, size = turn.row.name, {"texts": 1, "clients": BUSY_CLIENTS}
    alone = embed(turn.server, "query", f"{name} capacity", requests=capacity_requests, **size)
    for percent in percents:
        rate = percent / 100 * alone["requests_per_s"]
        seed = f"{name} {percent} {turn.round}"
        due = client.poisson_arrivals(rate, max(1, round(rate * seconds)), seed)
        requests = requests_of("query", seed, len(due), texts=1)
        figures = measuring.drive(turn.server, client.open_loop(turn.server.address, requests, due))
        turn.record(figures | {"arrivals_per_s": rate}, f"{percent}% of capacity")


def on_device(turn: Turn, **work: Any) -> None:
    """What torch is asked to measure: the method of the scenario's name."""
    for target, case, figures in turn.peer.ask(turn.row.name, **work):
        turn.record(figures, case, target)


def http(turn: Turn, **work: Any) -> None:
    """Several client processes index, or send short queries."""
    turn.record(measuring.watched(lambda: _drive_by_processes(turn, **work)))


def profile_under_load(turn: Turn, **work: Any) -> None:
    """Where a request's time goes under load, from the sums on /metrics."""
    before = measuring.read_metrics(turn.server)
    seen = _drive_by_processes(turn, **work)
    figures = stage_figures(before, measuring.read_metrics(turn.server))
    if "p50_ms" in seen:
        figures = {"seen by the client, p50_ms": seen["p50_ms"], **figures}
    turn.record(figures)


def _drive_by_processes(turn: Turn, texts: int, connections: int, seconds: float) -> Figures:
    size: Any = {"requests": LOAD_TEXTS // texts, "texts": texts, "clients": connections}
    return turn.bench.load.drive(turn.server, turn.seed, **size, seconds=seconds)


def stage_figures(before: str, after: str) -> Figures:
    """Means of what was observed between two pages of /metrics; seconds as milliseconds."""
    figures = {}
    for name, (series, labels) in _HISTOGRAMS.items():
        parts = [f"embedding_server_{series}_{part}" for part in ("sum", "count")]
        total, count = (
            measuring.metric(after, p, **labels) - measuring.metric(before, p, **labels)
            for p in parts
        )
        if count:
            figures[name] = total / count * (1e3 if name.endswith("_ms") else 1)
    return figures
