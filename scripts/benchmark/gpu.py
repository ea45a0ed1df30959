"""The scenarios for GPUs: what the card could do, what the engine makes of it, what HTTP leaves.

A card computes a thousand times as fast as the processor for which the other scenarios are made:
one client process could not keep it busy, and how long they take would be noise. Each step drives
one target once; all of them together are made to take less than four minutes.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

from scripts.benchmark import client
from scripts.benchmark.client import MODEL, embeddings_request
from scripts.benchmark.gpu_card import served_card
from scripts.benchmark.load import GpuWatch, Load, Work
from scripts.benchmark.measuring import Step
from scripts.benchmark.peers import InProcess
from scripts.benchmark.processes import BenchError
from scripts.benchmark.results import Record, Results, work_figures
from scripts.benchmark.servers import Server, fetch_model
from scripts.benchmark.texts import make_requests
from server.inference.pooling import cosines

CPU = "cpu"
TORCH_CPU = "torch-cpu"  # a smoke run: torch, but on the CPU
SAME_COSINE = 0.999  # of half precision beside ONNX Runtime in float32
ENGINE, SENTENCE_TRANSFORMERS = "engine", "sentence-transformers"
TUNED_ON = 2_048  # texts
# Of Qwen3-Embedding-0.6B.
DECODER = {
    "vocab_size": 151_669,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
SMALL_DECODER = {
    "vocab_size": 1_000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
INDEXING_CLIENTS = 16
LOAD_TEXTS = 2_048  # that each process makes and sends again and again
STAGES = ("read", "tokenize", "wait", "compute", "serialize")


@dataclass(frozen=True, slots=True)
class GpuScale:
    """How much work each scenario is."""

    matrix_size: int
    matrix_samples: int
    forward_tokens: tuple[int, ...]
    forward_s: float
    single_queries: int
    decoder: dict[str, int]
    decoder_tokens: tuple[int, ...]
    decoder_sequence_tokens: int
    decoder_passes: int
    texts_each: tuple[int, ...]  # a request, when indexing
    indexing_texts: int  # embedded again and again
    indexing_s: float
    load_processes: int
    load_s: float
    connections_each: tuple[int, ...]  # a process, when indexing
    query_connections: tuple[int, ...]  # of all processes


FULL = GpuScale(
    matrix_size=8192,
    matrix_samples=7,
    forward_tokens=(16, 128, 1024, 4096, 16_384),
    forward_s=0.25,
    single_queries=300,
    decoder=DECODER,
    decoder_tokens=(16_384, 32_768),
    decoder_sequence_tokens=512,
    decoder_passes=10,
    texts_each=(64, 256),
    indexing_texts=16_384,
    indexing_s=4,
    load_processes=6,
    load_s=2.5,
    connections_each=(4,),
    query_connections=(1, 16, 64, 256),
)
QUICK = GpuScale(
    matrix_size=128,
    matrix_samples=3,
    forward_tokens=(16, 64),
    forward_s=0.01,
    single_queries=10,
    decoder=SMALL_DECODER,
    decoder_tokens=(128,),
    decoder_sequence_tokens=64,
    decoder_passes=3,
    texts_each=(2, 4),
    indexing_texts=8,
    indexing_s=0.01,
    load_processes=2,
    load_s=0.5,
    connections_each=(2,),
    query_connections=(1, 4),
)


@dataclass(frozen=True, slots=True)
class GpuBench:
    """The targets of a run, those that its scenarios need, and the results so far."""

    card: InProcess
    servers: Sequence[Server]  # ours first
    engines: Sequence[InProcess]  # ours first
    reference: InProcess | None
    load: Load
    results: Results
    scale: GpuScale

    def record(self, scenario: str, target: str, figures: dict[str, float], case: str) -> None:
        """Keep one target's figures."""
        self.results.records.append(Record(scenario, case, target, 0, figures))

    def measure(self, scenario: str, **asked: Any) -> None:
        """Have the card measure something and keep what it tells."""
        for target, case, figures in self.card.ask(scenario, **asked)["records"]:
            self.record(scenario, target, figures, case)


def start(
    asked: argparse.Namespace,
    stack: contextlib.ExitStack,
    start_servers: Callable[[], list[Server]],
    results: Results,
) -> GpuBench:
    """Start what the scenarios need, all at the same time.

    Args:
        asked: the command line's.
        stack: ends the targets.
        start_servers: called if a scenario needs servers.
    """
    needed = set(asked.only)
    on_cpu = asked.device == TORCH_CPU
    scale = QUICK if asked.quick or on_cpu else FULL
    torch_device = {TORCH_CPU: CPU, "cuda": "cuda:0"}.get(asked.device, asked.device)

    def child(kind: str, *arguments: str, module: str = "peer") -> InProcess:
        return stack.enter_context(InProcess(kind, *arguments, module=module))

    card = child("card", torch_device, *asked.only, module="gpu_peer")
    engines: list[InProcess] = []
    if "indexing" in needed:
        engines.append(child(ENGINE, CPU if on_cpu else asked.device))
        folder = asked.st_folder or fetch_model(asked.cache)
        dtype = served_card(torch_device).dtype
        engines.append(child(SENTENCE_TRANSFORMERS, str(folder), torch_device, dtype))
    compared = needed & {"forward", "indexing", "http", "profile"}
    reference = child("onnxruntime") if compared else None
    loading = needed & {"http", "profile"}
    load = Load(
        [child("load", module="load_peer") for _ in range(scale.load_processes * bool(loading))]
    )
    servers = start_servers() if loading else []
    return GpuBench(card, servers, engines, reference, load, results, scale)


def verify(bench: GpuBench) -> Iterator[Step]:
    """See that all targets are there and give the vectors that ONNX Runtime gives."""
    (texts,) = make_requests("mixed", "verify", 1, texts=8)
    expected: list[NDArray[np.float32]] = []

    def ask(peer: InProcess) -> dict[str, Any]:
        return {peer.name: peer.ask("vectors", texts=texts)["vectors"]}

    def ask_card() -> dict[str, Any]:
        return bench.card.ask("vectors", texts=texts)

    def ask_server(server: Server) -> dict[str, Any]:
        request = embeddings_request(texts)
        response = uvloop.run(client.ask(server.address, request))
        client.check(request, response)
        answered = json.loads(response.body)["data"]
        rows = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in answered]
        return {server.name: rows}

    def compare(asking: Callable[[], dict[str, Any]]) -> None:
        for name, rows in asking().items():
            vectors = np.array(rows, np.float32)
            expected.append(vectors)
            if vectors.shape != expected[0].shape:
                raise BenchError(f"{name} gives vectors {vectors.shape}, not {expected[0].shape}")
            cosine = float(cosines(vectors, expected[0]).min())
            if not cosine > SAME_COSINE:
                raise BenchError(f"{name} gives other vectors: cosine {cosine:.5f}")

    asked: dict[str, Callable[[], dict[str, Any]]] = {}
    if bench.reference is not None:
        asked["ONNX Runtime"] = functools.partial(ask, bench.reference)
        asked["card"] = ask_card
    asked |= {peer.name: functools.partial(ask, peer) for peer in bench.engines}
    asked |= {server.name: functools.partial(ask_server, server) for server in bench.servers}
    for name, asking in asked.items():
        yield Step(f"verify: {name}", functools.partial(compare, asking))


def rate(bench: GpuBench) -> Iterator[Step]:
    """How fast the card multiplies square matrices of random numbers."""
    scale = bench.scale
    yield Step(
        "rate", lambda: bench.measure("rate", size=scale.matrix_size, samples=scale.matrix_samples)
    )


def forward(bench: GpuBench) -> Iterator[Step]:
    """The backend alone: micro-batches by size, two threads, one query; recorded graphs or not."""
    scale = bench.scale
    asked = {
        "tokens": scale.forward_tokens,
        "at_least_s": scale.forward_s,
        "queries": scale.single_queries,
    }
    yield Step("forward", lambda: bench.measure("forward", **asked))


def decoder(bench: GpuBench) -> Iterator[Step]:
    """A decoder-type model of 0.6 billion parameters, its layers as written and compiled."""
    scale = bench.scale
    asked = {
        "shape": scale.decoder,
        "sequence_tokens": scale.decoder_sequence_tokens,
        "tokens": scale.decoder_tokens,
        "passes": scale.decoder_passes,
    }
    for compiled in (False, True) if scale is FULL else (False,):  # compiling takes its time
        run = functools.partial(bench.measure, "decoder", compiled=compiled, **asked)
        yield Step(f"decoder{', compiled' if compiled else ''}", run)


def indexing(bench: GpuBench) -> Iterator[Step]:
    """The engine in process, by texts a request; sentence-transformers with all of them at once."""
    name, scale = "indexing", bench.scale

    def warm_up(peer: InProcess) -> None:
        texts = min(TUNED_ON, scale.indexing_texts)
        requests = make_requests("mixed", f"{name} warm up", 1, texts=texts)
        for _ in range(2):  # sentence-transformers chooses its batch size; first it must be warm
            peer.ask("warm up", requests=requests)

    def run(peer: InProcess, texts: int) -> dict[str, float]:
        answer = peer.ask(
            "index",
            kind="mixed",
            seed=name,  # the same texts, however many make a request
            requests=scale.indexing_texts // texts,
            texts=texts,
            clients=INDEXING_CLIENTS,
            at_least_s=scale.indexing_s,
        )
        lengths = answer["lengths"] * answer["times"]
        return work_figures(lengths, len(lengths) // texts, answer["seconds"])

    def run_engine(peer: InProcess, texts: int) -> None:
        bench.record(name, peer.name, run(peer, texts), _case(texts))

    def run_other(peer: InProcess) -> None:
        figures = run(peer, scale.texts_each[-1])
        for texts in scale.texts_each:
            figures = dict(figures)
            for ours in bench.results.by_round(name, ENGINE, "tokens_per_s", _case(texts)).values():
                figures["engine_through_this"] = ours / figures["tokens_per_s"]
            bench.record(name, peer.name, figures, _case(texts))

    for peer in bench.engines:
        yield Step(f"{name}, warm up: {peer.name}", functools.partial(warm_up, peer))
    engine, other = bench.engines
    for texts in scale.texts_each:
        run_texts = functools.partial(run_engine, engine, texts)
        yield Step(f"{name}, {_case(texts)}: {engine.name}", run_texts)
    yield Step(f"{name}: {other.name}", functools.partial(run_other, other))


def _case(texts: int) -> str:
    return f"{texts} texts a request"


def http(bench: GpuBench) -> Iterator[Step]:
    """Several client processes index, then send short queries."""
    name, scale = "http", bench.scale

    def run(server: Server, work: Work, connections: int) -> None:
        bench.load.make(work, f"{name} {work.kind} {work.texts}")
        with GpuWatch() as watch:
            figures = bench.load.run(server, connections, scale.load_s)
        bench.record(name, server.name, figures | watch.figures, _called(work, connections))

    yield from _warm_up(bench, name)
    for work in map(_indexing_work, scale.texts_each):
        for each in scale.connections_each:
            for server in bench.servers:
                connections = each * scale.load_processes
                label = f"{name}, {_called(work, connections)}: {server.name}"
                yield Step(label, functools.partial(run, server, work, connections))
    for connections in scale.query_connections:
        for server in bench.servers:
            label = f"{name}, {_called(QUERIES, connections)}: {server.name}"
            yield Step(label, functools.partial(run, server, QUERIES, connections))


QUERIES = Work("query", 1, LOAD_TEXTS)


def _indexing_work(texts: int) -> Work:
    return Work("mixed", texts, LOAD_TEXTS // texts)


def _called(work: Work, connections: int) -> str:
    what = "short queries" if work.texts == 1 else f"{work.texts} texts a request"
    return f"{what}, {connections} connection{'s' if connections > 1 else ''}"


def _warm_up(bench: GpuBench, name: str) -> Iterator[Step]:
    def run(server: Server) -> None:
        for work in (QUERIES, _indexing_work(bench.scale.texts_each[0])):
            bench.load.make(work, f"{name} {work.kind} {work.texts}")
            bench.load.run(server, 2 * bench.scale.load_processes, 0.5)

    for server in bench.servers:
        yield Step(f"{name}, warm up: {server.name}", functools.partial(run, server))


def profile(bench: GpuBench) -> Iterator[Step]:
    """Where a request's time goes under load, from the sums on /metrics."""
    name, scale = "profile", bench.scale
    connections = scale.connections_each[0] * scale.load_processes

    def run(server: Server, work: Work) -> None:
        bench.load.make(work, f"{name} {work.kind} {work.texts}")
        before = read_totals(server.page("/metrics") or "")
        seen = bench.load.run(server, connections, scale.load_s)
        after = read_totals(server.page("/metrics") or "")
        figures = stage_figures(before, after)
        if "p50_ms" in seen:
            figures = {"seen by the client, p50_ms": seen["p50_ms"], **figures}
        bench.record(name, server.name, figures, _called(work, connections))

    yield from _warm_up(bench, name)
    for work in (_indexing_work(scale.texts_each[0]), QUERIES):
        for server in bench.servers:
            label = f"{name}, {_called(work, connections)}: {server.name}"
            yield Step(label, functools.partial(run, server, work))


def read_totals(page: str) -> dict[str, tuple[float, float]]:
    """Sum and count of the histograms that tell where time goes, from a page of /metrics."""

    def total(series: str, labels: str) -> tuple[float, float]:
        found = []
        for part in ("sum", "count"):
            pattern = rf"^embedding_server_{series}_{part}{{([^}}]*)}} (\S+)$"
            lines = re.findall(pattern, page, re.MULTILINE)
            found.append(sum(float(value) for told, value in lines if labels in told))
        return found[0], found[1]

    stages = {stage: total("stage_seconds", f'stage="{stage}"') for stage in STAGES}
    return {
        "total": total("request_seconds", 'route="/v1/embeddings"'),
        **stages,
        "micro_batch": total("micro_batch_seconds", f'model="{MODEL}"'),
        "micro_batch_tokens": total("micro_batch_tokens", f'model="{MODEL}"'),
        "micro_batch_sequences": total("micro_batch_sequences", f'model="{MODEL}"'),
    }


def stage_figures(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]
) -> dict[str, float]:
    """Means of what was observed between two pages; seconds as milliseconds."""
    figures = {}
    for name, (total, count) in after.items():
        observed = count - before[name][1]
        if observed:
            mean = (total - before[name][0]) / observed
            counts = name in ("micro_batch_tokens", "micro_batch_sequences")
            figures[name if counts else f"{name}_ms"] = mean if counts else 1e3 * mean
    return figures


SCENARIOS = {
    "rate": rate,
    "forward": forward,
    "decoder": decoder,
    "indexing": indexing,
    "http": http,
    "profile": profile,
}


def plan(bench: GpuBench, names: Sequence[str]) -> list[Step]:
    """All steps, verification first."""
    return [step for make in (verify, *(SCENARIOS[name] for name in names)) for step in make(bench)]
