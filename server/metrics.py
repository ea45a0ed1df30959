"""Every metric of the server, declared once: name, labels, unit, buckets, help.

Names follow Prometheus' conventions (base units, `_total` for counters). All series are there at
zero before the first request, so that a rate over them is never missing. Any thread may observe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from server import __version__
from server.errors import ApiError, api_errors
from server.program.declared_metrics import Declared, WatchedCounter, declared

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
EMBEDDINGS_ROUTE = "/v1/embeddings"
OTHER_ROUTE = "other"  # an unknown path must not become a label
ROUTES = (
    EMBEDDINGS_ROUTE, "/v1/models", "/v1/models/{model_id:path}",
    "/livez", "/readyz", "/health", "/metrics", "/openapi.json", OTHER_ROUTE,
)  # fmt: skip
# The phases of a request in their order; `load` is there only if it had to wait for its model to be
# loaded, `wait` ends when its first sequence is computed.
STAGES = ("read", "load", "tokenize", "wait", "compute", "serialize")

RESTART_REASONS = ("ended", "silent")
_ALIKE = ("process_start_time_seconds", "process_max_fds", "python_info")
_SECONDS = (.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120)  # fmt: skip
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each, which nobody asks for


class EngineMetrics:
    """The series of one encoder, each with its name as the label `model`."""

    queue_tokens = Declared(Gauge, "queue_tokens", "Tokens that wait for a worker.", watched=True)
    queue_sequences = Declared(Gauge, "queue_sequences", "Sequences that wait.", watched=True)
    admitted_tokens = Declared(
        Gauge, "admitted_tokens", "Tokens of admitted requests, not computed yet.", watched=True
    )
    tokens_per_second = Declared(
        Gauge, "tokens_per_second", "Measured speed of all workers together.", watched=True
    )
    replicas_alive = Declared(Gauge, "replicas_alive", "Worker threads that work.", watched=True)
    replica_restarts = Declared(Counter, "replica_restarts_total", "Threads replaced.")
    batch_sequences = Declared(
        Histogram, "micro_batch_sequences", "Sequences of a micro-batch.", buckets=_SEQUENCES
    )
    batch_tokens = Declared(
        Histogram,
        "micro_batch_tokens",
        "Tokens of a micro-batch, padding counted.",
        buckets=_TOKENS,
    )
    batch_seconds = Declared(
        Histogram, "micro_batch_seconds", "Time to compute a micro-batch.", buckets=_SECONDS
    )
    computed_tokens = Declared(
        Counter, "computed_tokens_total", "Tokens computed, without padding."
    )
    padding_tokens = Declared(
        Counter, "padding_tokens_total", "Tokens of padding computed beside them."
    )
    repeated_sequences = Declared(
        Counter,
        "repeated_sequences_total",
        "Sequences equal to another one of their request, computed once with it.",
    )
    sequence_failures = Declared(
        Counter, "sequence_failures_total", "Sequences on which the model failed."
    )
    loaded = Declared(Gauge, "model_loaded", "1 while the model is in memory.")
    loads = Declared(Counter, "model_loads_total", "Times it was loaded.")
    file_bytes = Declared(
        Gauge, "model_file_bytes", "Size of its files while it is in memory, 0 otherwise."
    )
    resident_bytes = Declared(
        Gauge,
        "model_resident_bytes",
        "By how much the process's resident memory, mapped files included, grew while the "
        "model was loaded, with what requests took meanwhile; 0 if other models were loaded or "
        "unloaded in the same time, or if it was loaded at the start.",
    )

    recorded_bytes = Declared(Gauge, "recorded_passes_bytes", "GPU memory of its CUDA graphs.")
    refused_shapes = Declared(Gauge, "refused_shapes", "Its CUDA graphs that differ, so unused.")

    def __init__(self, metrics: Metrics, encoder: str) -> None:
        for name, family in metrics.engine_families.items():
            setattr(self, name, family.labels(encoder))

    def watch(self, **read: Callable[[], float]) -> None:
        """Read each watched gauge from its function whenever the page is asked for.

        Args:
            read: a function for each of WATCHED.
        """
        if read.keys() != WATCHED:
            raise TypeError(f"to be watched: {', '.join(sorted(WATCHED))}")
        for name, function in read.items():
            getattr(self, name).set_function(function)

    def tell_loaded(self, file_bytes: int, resident_bytes: int | None) -> None:
        """The encoder is in memory; `resident_bytes` is what that added, if it is known."""
        self.loads.inc()
        self.loaded.set(1)
        self.file_bytes.set(file_bytes)
        self.resident_bytes.set(resident_bytes or 0)

    def tell_unloaded(self) -> None:
        """The encoder is in memory no more: nothing is watched."""
        gauges = (self.loaded, self.file_bytes, self.resident_bytes)
        for gauge in (*gauges, self.recorded_bytes, self.refused_shapes):
            gauge.set(0)
        self.watch(**dict.fromkeys(WATCHED, float))


WATCHED = frozenset(name for name, family in declared(EngineMetrics).items() if family.watched)


class Metrics:
    """The metrics of one process, in a registry of their own.

    Args:
        models: names of the served cards.
        encoders: names of the cards whose weights compute; cards with equal weights share one.
    """

    build_info = Declared(
        Gauge, "build_info", "1, with the version as label.", "version", alike=True
    )
    request_memory_bytes = Declared(
        Gauge, "request_memory_bytes", "Memory that requests take, of max_memory_bytes."
    )
    open_connections = Declared(Gauge, "open_connections", "Connections of clients.")
    max_connections = Declared(
        Gauge, "max_connections", "Most that the limit of open files leaves room for."
    )
    closed_idle_connections = Declared(
        Counter, "closed_idle_connections_total", "Idle ones closed to make room for a new one."
    )
    dropped_log_lines = Declared(
        WatchedCounter, "dropped_log_lines_total", "Lines that standard error did not take."
    )
    ready = Declared(Gauge, "ready", "1 if the server takes work, as /readyz says.", alike=True)
    engine_silent_seconds = Declared(
        Gauge, "engine_silent_seconds", "Age of a front end's news of the engine.", alike=True
    )
    frontend_restarts = Declared(
        Counter, "frontend_restarts_total", "Front ends that were replaced.", "reason"
    )
    requests = Declared(
        Counter,
        "requests_total",
        "Requests answered, by route, status (499: the client left) and model.",
        "route", "status", "model",
    )  # fmt: skip
    request_seconds = Declared(
        Histogram,
        "request_seconds",
        "Time from a request's head to its answer.",
        "route",
        buckets=_SECONDS,
    )
    refusals = Declared(Counter, "refusals_total", "Requests answered by an error.", "reason")
    inputs = Declared(Counter, "inputs_total", "Inputs turned into vectors.", "model")
    input_tokens = Declared(
        Counter, "input_tokens_total", "Tokens of those inputs, as in `usage`.", "model"
    )
    stage_seconds = Declared(
        Histogram,
        "stage_seconds",
        "Time of a request that was answered, by stage.",
        "stage", "model",
        buckets=_SECONDS,
    )  # fmt: skip
    serving_compilations = Declared(
        Counter, "serving_compilations_total", "Compilations by torch while requests wait."
    )
    database_up = Declared(
        Gauge, "database_up", "1 unless the database of keys is away.", alike=True
    )
    rate_limit_storage_up = Declared(
        Gauge,
        "rate_limit_storage_up",
        "1 unless the storage that counts rate limits is away.",
        alike=True,
    )
    database_replacements = Declared(
        Counter,
        "database_replacements_total",
        "Times a front end found another database, or an older copy, in its place.",
    )
    unwritten_usage_tokens = Declared(
        Gauge, "unwritten_usage_tokens", "Tokens counted, not in the database yet."
    )

    def __init__(self, models: Iterable[str], encoders: Iterable[str]) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.alike = {*_ALIKE, *(f.name for f in declared(Metrics).values() if f.alike)}
        for name, family in declared(Metrics).items():
            setattr(self, name, family.make(registry))
        self.engine_families = {
            name: family.make(registry, "model") for name, family in declared(EngineMetrics).items()
        }
        self.build_info.labels(__version__).set(1)
        self._start_at_zero(tuple(models), tuple(encoders))

    def page(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def families(self) -> list[Metric]:
        """What is on the page, family by family."""
        return list(self._registry.collect())

    def _start_at_zero(self, models: tuple[str, ...], encoders: tuple[str, ...]) -> None:
        statuses = sorted({"200", "499", *(str(error.status) for error in api_errors())})
        for route in ROUTES:
            self.request_seconds.labels(route)
            for status in statuses if route == EMBEDDINGS_ROUTE else ("200",):
                self.requests.labels(route, status, "")
        for reason in RESTART_REASONS:
            self.frontend_restarts.labels(reason)
        for error in api_errors():
            self.refusals.labels(refusal_reason(error))
        for model in models:
            for status in statuses:
                self.requests.labels(EMBEDDINGS_ROUTE, status, model)
            for stage in STAGES:
                self.stage_seconds.labels(stage, model)
            self.inputs.labels(model)
            self.input_tokens.labels(model)
        for encoder in encoders:
            EngineMetrics(self, encoder)


def refusal_reason(error: type[ApiError] | ApiError) -> str:
    """An error's code, or its type if it has none."""
    return error.code or error.type
