"""The scenarios for GPUs: what the card could do, what the engine makes of it, what HTTP leaves.

A card computes a thousand times as fast as the processor for which the other scenarios are made:
one client process could not keep it busy, and how long they take would be noise. All of them
together are made to take less than four minutes.
"""

from __future__ import annotations

from typing import Any

from scripts.benchmark.client import MODEL
from scripts.benchmark.cpu_scenarios import INDEXING_TEXTS, embed
from scripts.benchmark.measuring import Load, metric, read_metrics, watched_gpus
from scripts.benchmark.results import Figures
from scripts.benchmark.scenario import Turn

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


def on_device(turn: Turn, **work: Any) -> None:
    """What torch is asked to measure: the method of the scenario's name."""
    for target, case, figures in turn.peer.ask(turn.row.name, **work):
        turn.record(figures, case, target)


def indexing(
    turn: Turn, *, each: list[int], texts: int, tuning_texts: int, at_least_s: float
) -> None:
    """The same texts by the engine, however many make a request; by another all at once, beside it."""
    turn.peer.ask("make", kind="mixed", seed="indexing warm up", requests=1, texts=tuning_texts)
    for _ in range(2):  # sentence-transformers chooses its batch size; first it must be warm
        turn.peer.ask("warm_up")
    size: Any = {"clients": INDEXING_CLIENTS, "at_least_s": at_least_s}
    if turn.target.name == "engine":
        for one in each:
            figures = embed(
                turn.peer, "mixed", "indexing", requests=texts // one, texts=one, **size
            )
            turn.record(figures, f"{one} texts a request")
        return
    figures = embed(
        turn.peer, "mixed", "indexing", requests=texts // each[-1], texts=each[-1], **size
    )
    for engine in turn.bench.results.of(turn.row.name, "engine"):
        through = engine.figures["tokens_per_s"] / figures["tokens_per_s"]
        turn.record(figures | {"engine_through_this": through}, engine.case)


def warm_up(turn: Turn, *, connections: int) -> None:
    """Have a server compute what is like that which is to come."""
    for texts in (1, INDEXING_TEXTS):
        _made(turn, texts).drive(turn.server, connections, WARM_UP_S)


def http(turn: Turn, *, texts: int, connections: int, seconds: float) -> None:
    """Several client processes index, or send short queries."""
    load = _made(turn, texts)
    with watched_gpus() as seen:
        figures = load.drive(turn.server, connections, seconds)
    turn.record(figures | seen)


def profile(turn: Turn, *, texts: int, connections: int, seconds: float) -> None:
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
