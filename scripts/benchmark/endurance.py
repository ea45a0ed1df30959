"""The scenarios that only our server goes through: a flood, a soak, and where the time goes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import uvloop

from scripts.benchmark import client
from scripts.benchmark.client import Sample, requests_of
from scripts.benchmark.results import MB, Figures, percentiles_ms
from scripts.benchmark.scenario import Turn
from scripts.benchmark.scenarios import BUSY_CLIENTS, INDEXING_TEXTS, send
from scripts.benchmark.targets import Server, own_server

FLOOD_FACTOR = 20  # times what the server can take
FLOOD_TEXTS = 16
FLOOD_REQUESTS = 500  # sent again and again
GIVE_UP_S = 10
CALM_S = 5  # before the flood and after it
PROBE_EVERY_S = 0.2
NORMAL = 2  # times the median before the flood
NORMAL_PROBES = 5  # whose median tells whether the server is back to normal
MEMORY_EVERY_S = 1
MAX_RETRY_AFTER_S = 60
PROFILED = {"short query": ("query", 1, 200), "64 texts": ("mixed", INDEXING_TEXTS, 8)}


def flood(turn: Turn, *, seconds: float) -> None:
    """Far more requests than can be served, and what becomes of a short query meanwhile."""
    size = {"requests": 32, "texts": FLOOD_TEXTS, "clients": 8}
    capacity = send(turn.server, "mixed", "flood capacity", **size)["requests_per_s"]
    rate = FLOOD_FACTOR * capacity
    figures = uvloop.run(_flood(turn.server, rate, seconds))
    share = figures.get("status_200", 0) / (capacity * seconds)
    figures = {"arrivals_per_s": rate, **figures, "answered_of_capacity_percent": 100 * share}
    turn.record(figures)


async def _flood(server: Server, rate: float, seconds: float) -> Figures:
    arrivals = client.poisson_arrivals(rate, round(rate * seconds), "flood")
    bulk = itertools.cycle(requests_of("mixed", "flood", FLOOD_REQUESTS, texts=FLOOD_TEXTS))
    probe_times = [PROBE_EVERY_S * i for i in range(round((seconds + 2 * CALM_S) / PROBE_EVERY_S))]
    queries = requests_of("query", "flood", len(probe_times), texts=1)
    patience: Any = {"give_up_s": GIVE_UP_S}
    memory: list[int] = []

    async def watch() -> None:
        while True:
            memory.append(server.usage().resident_bytes)
            await asyncio.sleep(MEMORY_EVERY_S)

    async with asyncio.TaskGroup() as tasks:
        open_loop = client.open_loop(server.address, queries, probe_times, **patience)
        probing = tasks.create_task(open_loop)
        await asyncio.sleep(CALM_S)
        watching = tasks.create_task(watch())
        began = time.perf_counter()
        flood = await client.open_loop(server.address, bulk, arrivals, until_s=seconds, **patience)
        ended = time.perf_counter()
        watching.cancel()
    half = len(memory) // 2
    return _flood_figures(began, ended, probing.result(), flood) | {
        "resident_mb": max(memory) / MB,
        "memory_growth_percent": _growth_percent(max(memory[:half]), max(memory[half:])),
    }


def _growth_percent(before: float, after: float) -> float:
    return 100 * (after / before - 1)


def _flood_figures(
    began: float, ended: float, probes: Sequence[Sample], flood: Sequence[Sample]
) -> Figures:
    """Of samples; times on the clock of `time.perf_counter`."""
    statuses = Counter(sample.status for sample in flood)
    during = [sample for sample in probes if began <= sample.due < ended]
    refused = [sample for sample in flood if sample.status not in (0, 200)]
    calm_ms = percentiles_ms([sample.ms for sample in probes if sample.ended < began])["p50_ms"]
    figures = {
        "requests": len(flood),
        "gave_up": statuses.pop(0, 0),
        **{f"status_{status}": count for status, count in sorted(statuses.items())},
        "probes_answered_percent": _percent(sample.status == 200 for sample in during),
        **percentiles_ms([sample.ms for sample in during if sample.status == 200]),
        "calm_p50_ms": calm_ms,
        "recovery_s": recovery_s(probes, ended, calm_ms),
    }
    if refused:
        figures["right_refusals_percent"] = _percent(map(is_right_refusal, refused))
    return figures


def _percent(fates: Iterable[bool]) -> float:
    return 100 * statistics.mean(fates)


def is_right_refusal(sample: Sample) -> bool:
    """A 503 that tells when to come back, in whole seconds."""
    seconds = sample.retry_after or ""
    whole = re.fullmatch("[0-9]+", seconds) is not None
    return sample.status == 503 and whole and 1 <= int(seconds) <= MAX_RETRY_AFTER_S


def recovery_s(probes: Sequence[Sample], ended: float, calm_ms: float) -> float:
    """Seconds from the flood's end until a second's probes have a normal median latency again."""
    after = sorted((probe for probe in probes if probe.due >= ended), key=lambda probe: probe.due)
    for first in range(len(after) - NORMAL_PROBES + 1):
        window = after[first : first + NORMAL_PROBES]
        if statistics.median(probe.ms for probe in window) <= NORMAL * calm_ms:
            return window[0].due - ended
    return float("inf")


def soak(turn: Turn, *, requests: int) -> None:
    """A part of a hundred thousand short queries; after the last, by how much memory has grown."""
    size = {"requests": requests, "texts": 1, "clients": BUSY_CLIENTS}
    figures = send(turn.server, "query", turn.seed, **size)
    seen = turn.bench.results.by_round(turn.row.name, turn.target.name, "resident_mb")
    if turn.round == turn.row.rounds - 1:
        figures["memory_growth_percent"] = _growth_percent(seen[0], figures["resident_mb"])
    turn.record(figures)


def profile(turn: Turn) -> None:
    """One request's time by stage, from the log of a server of its own."""
    server = own_server(turn.target.name, [*turn.bench.serve_flags, "--log-format", "json"])
    with contextlib.closing(server):
        server.wait_ready()
        for case, (kind, texts, count) in PROFILED.items():
            requests = requests_of(kind, turn.row.name, count, texts=texts)
            samples = client.run(client.closed_loop(server.address, requests, clients=1))
            lines = [json.loads(line) for line in server.log().splitlines()]
            logged = [line["ms"] for line in lines if "ms" in line and line["inputs"] == texts]
            figures = {"seen by the client_ms": percentiles_ms([s.ms for s in samples])["p50_ms"]}
            figures |= {f"{s}_ms": statistics.median(ms[s] for ms in logged) for s in logged[0]}
            turn.record(figures, case)
