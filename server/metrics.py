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
from prometheus_client.registry import Collector

from server import __version__
from server.errors import ApiError

PREFIX = "embedding_server"
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

_ALIKE = ("process_start_time_seconds", "process_max_fds", "python_info")
_SECONDS = (.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120)  # fmt: skip
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each, which nobody asks for


class Metrics:
    """The metrics of one process, in a registry of their own.

    Args:
        models: names of the served cards.
        encoders: names of the cards whose weights compute; cards with equal weights share one.
    """

    def __init__(self, models: Iterable[str], encoders: Iterable[str]) -> None:
        registry = self._registry = CollectorRegistry()
        self.alike = set(_ALIKE)  # families that say the same of each process of a server
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", help_text, labels, registry=registry)

        def gauge(name: str, help_text: str, *labels: str, alike: bool = False) -> Gauge:
            if alike:
                self.alike.add(f"{PREFIX}_{name}")
            return Gauge(f"{PREFIX}_{name}", help_text, labels, registry=registry)

        def histogram(
            name: str, help_text: str, buckets: tuple[float, ...], *labels: str
        ) -> Histogram:
            return Histogram(
                f"{PREFIX}_{name}", help_text, labels, registry=registry, buckets=buckets
            )

        gauge("build_info", "1, with the version as label.", "version", alike=True).labels(
            __version__
        ).set(1)
        self.ready = gauge("ready", "1 if the server takes work, as /readyz says.", alike=True)
        self.requests = counter(
            "requests_total",
            "Requests answered, by route, status (499: the client left) and model.",
            "route", "status", "model",
        )  # fmt: skip
        self.request_seconds = histogram(
            "request_seconds", "Time from a request's head to its answer.", _SECONDS, "route"
        )
        self.refusals = counter("refusals_total", "Requests answered by an error.", "reason")
        self.inputs = counter("inputs_total", "Inputs turned into vectors.", "model")
        self.input_tokens = counter(
            "input_tokens_total", "Tokens of those inputs, as in `usage`.", "model"
        )
        self.stage_seconds = histogram(
            "stage_seconds",
            "Time of a request that was answered, by stage.",
            _SECONDS,
            "stage", "model",
        )  # fmt: skip
        self.queue_tokens = gauge("queue_tokens", "Tokens that wait for a worker.", "model")
        self.queue_sequences = gauge("queue_sequences", "Sequences that wait.", "model")
        self.admitted_tokens = gauge(
            "admitted_tokens", "Tokens of admitted requests, not computed yet.", "model"
        )
        self.tokens_per_second = gauge(
            "tokens_per_second", "Measured speed of all workers together.", "model"
        )
        self.replicas_alive = gauge("replicas_alive", "Worker threads that work.", "model")
        self.replica_restarts = counter("replica_restarts_total", "Threads replaced.", "model")
        self.batch_sequences = histogram(
            "micro_batch_sequences", "Sequences of a micro-batch.", _SEQUENCES, "model"
        )
        self.batch_tokens = histogram(
            "micro_batch_tokens", "Tokens of a micro-batch, padding counted.", _TOKENS, "model"
        )
        self.batch_seconds = histogram(
            "micro_batch_seconds", "Time to compute a micro-batch.", _SECONDS, "model"
        )
        self.computed_tokens = counter(
            "computed_tokens_total", "Tokens computed, without padding.", "model"
        )
        self.padding_tokens = counter(
            "padding_tokens_total", "Tokens of padding computed beside them.", "model"
        )
        self.sequence_failures = counter(
            "sequence_failures_total", "Sequences on which the model failed.", "model"
        )
        self.model_loaded = gauge("model_loaded", "1 while the model is in memory.", "model")
        self.model_loads = counter("model_loads_total", "Times it was loaded.", "model")
        self.model_file_bytes = gauge(
            "model_file_bytes", "Size of its files while it is in memory, 0 otherwise.", "model"
        )
        self.model_resident_bytes = gauge(
            "model_resident_bytes",
            "By how much the process's resident memory, mapped files included, grew while the "
            "model was loaded, with what requests took meanwhile; 0 if other models were loaded or "
            "unloaded in the same time, or if it was loaded at the start.",
            "model",
        )
        self.database_up = gauge(
            "database_up", "1 unless the database of keys is away.", alike=True
        )
        self.rate_limit_storage_up = gauge(
            "rate_limit_storage_up",
            "1 unless the storage that counts rate limits is away.",
            alike=True,
        )
        self.unwritten_usage_tokens = gauge(
            "unwritten_usage_tokens", "Tokens counted, not in the database yet."
        )
        self._start_at_zero(tuple(models), tuple(encoders))

    def page(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def families(self) -> list[Metric]:
        """What is on the page, family by family."""
        return list(self._registry.collect())

    def _start_at_zero(self, models: tuple[str, ...], encoders: tuple[str, ...]) -> None:
        statuses = sorted({"200", "499", *(str(error.status) for error in _api_errors())})
        for route in ROUTES:
            self.request_seconds.labels(route)
            for status in statuses if route == EMBEDDINGS_ROUTE else ("200",):
                self.requests.labels(route, status, "")
        for error in _api_errors():
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


def page_of(families: Iterable[Metric]) -> bytes:
    """These families in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collected(families))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class EngineMetrics:
    """The series of one encoder, looked up once."""

    def __init__(self, metrics: Metrics, encoder: str) -> None:
        self._queue_tokens = metrics.queue_tokens.labels(encoder)
        self._queue_sequences = metrics.queue_sequences.labels(encoder)
        self._admitted_tokens = metrics.admitted_tokens.labels(encoder)
        self._tokens_per_second = metrics.tokens_per_second.labels(encoder)
        self._replicas_alive = metrics.replicas_alive.labels(encoder)
        self._loaded = metrics.model_loaded.labels(encoder)
        self._loads = metrics.model_loads.labels(encoder)
        self._file_bytes = metrics.model_file_bytes.labels(encoder)
        self._resident_bytes = metrics.model_resident_bytes.labels(encoder)
        self.replica_restarts = metrics.replica_restarts.labels(encoder)
        self.batch_sequences = metrics.batch_sequences.labels(encoder)
        self.batch_tokens = metrics.batch_tokens.labels(encoder)
        self.batch_seconds = metrics.batch_seconds.labels(encoder)
        self.computed_tokens = metrics.computed_tokens.labels(encoder)
        self.padding_tokens = metrics.padding_tokens.labels(encoder)
        self.sequence_failures = metrics.sequence_failures.labels(encoder)

    def watch(
        self,
        *,
        queue_tokens: Callable[[], float],
        queue_sequences: Callable[[], float],
        admitted_tokens: Callable[[], float],
        tokens_per_second: Callable[[], float],
        replicas_alive: Callable[[], float],
    ) -> None:
        """Read the gauges from these functions whenever the page is asked for."""
        self._queue_tokens.set_function(queue_tokens)
        self._queue_sequences.set_function(queue_sequences)
        self._admitted_tokens.set_function(admitted_tokens)
        self._tokens_per_second.set_function(tokens_per_second)
        self._replicas_alive.set_function(replicas_alive)

    def tell_loaded(self, file_bytes: int, resident_bytes: int | None) -> None:
        """The encoder is in memory; `resident_bytes` is what that added, if it is known."""
        self._loads.inc()
        self._loaded.set(1)
        self._file_bytes.set(file_bytes)
        self._resident_bytes.set(resident_bytes or 0)

    def tell_unloaded(self) -> None:
        """The encoder is in memory no more: nothing is watched."""
        for gauge in (self._loaded, self._file_bytes, self._resident_bytes):
            gauge.set(0)
        self.watch(
            queue_tokens=_nothing,
            queue_sequences=_nothing,
            admitted_tokens=_nothing,
            tokens_per_second=_nothing,
            replicas_alive=_nothing,
        )


def refusal_reason(error: type[ApiError] | ApiError) -> str:
    """An error's code, or its type if it has none."""
    return error.code or error.type


def _nothing() -> float:
    return 0.0


def _api_errors() -> list[type[ApiError]]:
    found = [ApiError]
    for error in found:  # grows while it is walked
        found += error.__subclasses__()
    return found
