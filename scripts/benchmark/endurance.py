"""The scenarios that only our server goes through: a flood, a soak, and where the time goes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import NamedTuple

import uvloop

from scripts.benchmark.client import Sample, closed_loop, open_loop, poisson_arrivals
from scripts.benchmark.measuring import OURS, Bench, Step, drive
from scripts.benchmark.processes import Process
from scripts.benchmark.results import MB, latency_figures
from scripts.benchmark.scenarios import BUSY_CLIENTS, INDEXING_TEXTS, requests_of
from scripts.benchmark.servers import OwnServer, Server

FLOOD_FACTOR = 20  # times what the server can take
FLOOD_TEXTS = 16
FLOOD_REQUESTS = 500  # sent again and again
CAPACITY_REQUESTS = 32
GIVE_UP_S = 10
CALM_S = 5  # before the flood and after it
PROBE_EVERY_S = 0.2
NORMAL = 2  # times the median before the flood
NORMAL_PROBES = 5  # whose median tells whether the server is back to normal
MEMORY_EVERY_S = 1
MAX_RETRY_AFTER_S = 60
SOAK_PARTS = 10  # memory should not grow after the first
PROFILED = {"short query": ("query", 1, 200), "64 texts": ("mixed", INDEXING_TEXTS, 8)}


class Flood(NamedTuple):
    """What was seen during a flood; times on the clock of `time.perf_counter`."""

    began: float
    ended: float
    probes: list[Sample]
    flood: list[Sample]
    memory: list[int]  # bytes


def flood(bench: Bench) -> Iterator[Step]:
    """Far more requests than can be served, and what becomes of a short query meanwhile."""
    name = "flood"

    def run(server: Server) -> None:
        capacity = drive(
            server,
            closed_loop(
                server.address,
                requests_of("mixed", f"{name} capacity", CAPACITY_REQUESTS, texts=FLOOD_TEXTS),
                clients=8,
            ),
        )["requests_per_s"]
        rate = FLOOD_FACTOR * capacity
        seen = uvloop.run(_flood(server, rate, bench.scale.flood_s))
        figures = {"arrivals_per_s": rate, **_flood_figures(seen)}
        figures["answered_of_capacity_percent"] = (
            100 * figures.get("status_200", 0) / (capacity * bench.scale.flood_s)
        )
        bench.record(name, server.name, 0, figures)

    for server in bench.own_servers:
        yield Step(f"{name}: {server.name}", functools.partial(run, server))


async def _flood(server: Server, rate: float, seconds: float) -> Flood:
    arrivals = poisson_arrivals(rate, round(rate * seconds), "flood")
    bulk = itertools.cycle(requests_of("mixed", "flood", FLOOD_REQUESTS, texts=FLOOD_TEXTS))
    probe_times = [PROBE_EVERY_S * i for i in range(round((seconds + 2 * CALM_S) / PROBE_EVERY_S))]
    probes = requests_of("query", "flood", len(probe_times), texts=1)
    memory: list[int] = []

    async def watch() -> None:
        while True:
            memory.append(server.usage().resident_bytes)
            await asyncio.sleep(MEMORY_EVERY_S)

    probing = asyncio.create_task(
        open_loop(server.address, probes, probe_times, give_up_s=GIVE_UP_S)
    )
    await asyncio.sleep(CALM_S)
    watching = asyncio.create_task(watch())
    began = time.perf_counter()
    answered = await open_loop(server.address, bulk, arrivals, give_up_s=GIVE_UP_S, until_s=seconds)
    ended = time.perf_counter()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    return Flood(began, ended, await probing, answered, memory)


def _flood_figures(seen: Flood) -> dict[str, float]:
    statuses = Counter(sample.status for sample in seen.flood)
    before = [sample for sample in seen.probes if sample.ended < seen.began]
    during = [sample for sample in seen.probes if seen.began <= sample.due < seen.ended]
    refused = [sample for sample in seen.flood if sample.status not in (0, HTTPStatus.OK)]
    half = len(seen.memory) // 2
    calm_ms = latency_figures(before)["p50_ms"]
    figures = {
        "requests": len(seen.flood),
        "gave_up": statuses.pop(0, 0),
        **{f"status_{status}": count for status, count in sorted(statuses.items())},
        "probes_answered_percent": _percent(sample.status == HTTPStatus.OK for sample in during),
        **latency_figures([sample for sample in during if sample.status == HTTPStatus.OK]),
        "calm_p50_ms": calm_ms,
        "recovery_s": recovery_s(seen.probes, seen.ended, calm_ms),
        "resident_mb": max(seen.memory) / MB,
        "memory_growth_percent": 100 * (max(seen.memory[half:]) / max(seen.memory[:half]) - 1),
    }
    if refused:
        figures["right_refusals_percent"] = _percent(map(is_right_refusal, refused))
    return figures


def _percent(fates: Iterable[bool]) -> float:
    return 100 * statistics.mean(fates)


def is_right_refusal(sample: Sample) -> bool:
    """A 503 that tells when to come back, in whole seconds."""
    seconds = sample.retry_after or ""
    return (
        sample.status == HTTPStatus.SERVICE_UNAVAILABLE
        and re.fullmatch("[0-9]+", seconds) is not None
        and 1 <= int(seconds) <= MAX_RETRY_AFTER_S
    )


def recovery_s(probes: Sequence[Sample], ended: float, calm_ms: float) -> float:
    """Seconds from the flood's end until a second's probes have a normal median latency again."""
    after = sorted((probe for probe in probes if probe.due >= ended), key=lambda probe: probe.due)
    for first in range(len(after) - NORMAL_PROBES + 1):
        window = after[first : first + NORMAL_PROBES]
        if statistics.median(probe.ms for probe in window) <= NORMAL * calm_ms:
            return window[0].due - ended
    return float("inf")


def soak(bench: Bench) -> Iterator[Step]:
    """A hundred thousand short queries, and how much memory the server has afterwards."""
    name, count = "soak", bench.scale.soak_requests // SOAK_PARTS
    first: dict[str, float] = {}

    def run(server: Server, part: int) -> None:
        requests = requests_of("query", f"{name} {part}", count, texts=1)
        figures = drive(server, closed_loop(server.address, requests, BUSY_CLIENTS))
        resident_mb = figures["resident_mb"]
        growth = 100 * (resident_mb / first.setdefault(server.name, resident_mb) - 1)
        if part == SOAK_PARTS - 1:
            figures["memory_growth_percent"] = growth
        bench.record(name, server.name, part, figures)

    for part in range(SOAK_PARTS):
        for server in bench.own_servers:
            label = f"{name}, part {part + 1} of {SOAK_PARTS}: {server.name}"
            yield Step(label, functools.partial(run, server, part))


def profile(bench: Bench) -> Iterator[Step]:
    """One request's time by stage, from the log of a server of its own."""
    name = "profile"

    def run() -> None:
        flags = [*bench.serve_flags, "--log-format", "json"]
        with OwnServer(OURS, flags) as server:
            for case, (kind, texts, count) in PROFILED.items():
                requests = requests_of(kind, name, count, texts=texts)
                samples = uvloop.run(closed_loop(server.address, requests, clients=1))
                seen = latency_figures(samples)["p50_ms"]
                figures = {"seen by the client_ms": seen, **_stages(server, texts)}
                bench.record(name, OURS, 0, figures, case)

    yield Step(name, run)


def _stages(server: Process, num_texts: int) -> dict[str, float]:
    """Median milliseconds of each stage, over the logged requests with this many texts."""
    lines = [json.loads(line) for line in server.log().splitlines()]
    logged = [line["ms"] for line in lines if "ms" in line and line["inputs"] == num_texts]
    return {f"{stage}_ms": statistics.median(ms[stage] for ms in logged) for stage in logged[0]}
