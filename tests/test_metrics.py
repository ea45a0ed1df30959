from __future__ import annotations

import re

import pytest
from prometheus_client import Metric

from server import __version__
from server.errors import ApiError
from server.metrics import (
    EMBEDDINGS_ROUTE,
    ROUTES,
    STAGES,
    EngineMetrics,
    Metrics,
    refusal_reason,
)
from server.program.declared_metrics import PREFIX
from tests.conftest import MATRYOSHKA, PLAIN
from tests.metrics_page import MetricsPage

UNITS = ("_seconds", "_tokens", "_sequences")
MODELS = [MATRYOSHKA, PLAIN]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(models=MODELS, encoders=[PLAIN])


@pytest.fixture
def page(metrics: Metrics) -> MetricsPage:
    return MetricsPage(metrics.page())


def own(page: MetricsPage) -> list[Metric]:
    return [family for family in page.families if family.name.startswith(PREFIX)]


def api_errors(root: type[ApiError] = ApiError) -> set[type[ApiError]]:
    return {root}.union(*map(api_errors, root.__subclasses__()))


def test_before_any_traffic_every_family_is_there_at_zero(page: MetricsPage) -> None:
    assert len(own(page)) >= 20
    for family in own(page):
        assert family.samples, family.name
        for sample in family.samples:
            assert sample.value == (1 if sample.name.endswith("_build_info") else 0), sample


def test_each_model_has_its_series_from_the_start(page: MetricsPage) -> None:
    statuses = {"200", "499", *(str(error.status) for error in api_errors())}
    for model in MODELS:
        for status in statuses:
            page.value("requests_total", route=EMBEDDINGS_ROUTE, status=status, model=model)
        for stage in STAGES:
            page.value("stage_seconds_count", stage=stage, model=model)
        page.value("inputs_total", model=model)
        page.value("input_tokens_total", model=model)
    for status in statuses:  # refused before a model was found
        page.value("requests_total", route=EMBEDDINGS_ROUTE, status=status, model="")
    for route in ROUTES:
        page.value("request_seconds_count", route=route)
        page.value("requests_total", route=route, status="200", model="")


def test_each_encoder_has_its_series_from_the_start(page: MetricsPage) -> None:
    for name in (
        *("queue_tokens", "queue_sequences", "admitted_tokens", "tokens_per_second"),
        *("replicas_alive", "replica_restarts_total", "micro_batch_sequences_count"),
        *("micro_batch_tokens_count", "micro_batch_seconds_count", "computed_tokens_total"),
        *("padding_tokens_total", "sequence_failures_total"),
    ):
        assert [labels for labels, _ in page.having(name)] == [{"model": PLAIN}], name


def test_every_error_that_can_be_answered_is_a_reason_from_the_start(page: MetricsPage) -> None:
    there = {labels["reason"] for labels, _ in page.having("refusals_total")}
    assert there == {refusal_reason(error) for error in api_errors()}
    assert {"server_overloaded", "request_timeout", "model_failing", "invalid_api_key"} <= there
    assert {"internal_server_error", "invalid_request_error", "authentication_error"} <= there


def test_names_and_units_are_prometheus_own(page: MetricsPage) -> None:
    for family in own(page):
        assert re.fullmatch(r"embedding_server(_[a-z]+)+", family.name)
        assert family.documentation.endswith(".") or family.name.endswith("build_info")
        for sample in family.samples:
            assert all(re.fullmatch(r"[a-z]+", label) for label in sample.labels)
            assert sample.name.endswith("_total") == (family.type == "counter")
        if family.type == "histogram":
            assert family.name.endswith(UNITS), family.name
        assert not re.search(r"_(ms|s|millis|milliseconds|minutes|kb|mb|percent)\b", family.name)
    kinds = {family.type for family in own(page)}
    assert kinds == {"counter", "gauge", "histogram"}


def test_no_series_tells_when_another_was_made(metrics: Metrics) -> None:
    assert b"_created" not in metrics.page()


def test_the_process_itself_is_told_of(page: MetricsPage) -> None:
    names = {family.name for family in page.families}
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "python_info"} <= names


def test_the_version_is_a_label(page: MetricsPage) -> None:
    assert page.value("build_info", version=__version__) == 1


def test_buckets_rise_and_reach_as_far_as_a_request_may(page: MetricsPage) -> None:
    for family in own(page):
        if family.type != "histogram":
            continue
        bounds: dict[str, list[float]] = {}
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                others = str({k: v for k, v in sample.labels.items() if k != "le"})
                bounds.setdefault(others, []).append(float(sample.labels["le"]))
        for found in bounds.values():
            assert found == sorted(set(found))
            assert found[-1] == float("inf")
            if family.name.endswith("_seconds"):
                assert found[0] <= 0.001
                assert found[-2] >= 60


def test_watched_gauges_are_read_when_the_page_is_asked_for(metrics: Metrics) -> None:
    now = {"tokens": 3.0}
    EngineMetrics(metrics, PLAIN).watch(
        queue_tokens=lambda: now["tokens"],
        queue_sequences=lambda: 2,
        admitted_tokens=lambda: 5,
        tokens_per_second=lambda: 7,
        replicas_alive=lambda: 1,
    )
    for tokens in (3.0, 4.0):
        now["tokens"] = tokens
        page = MetricsPage(metrics.page())
        assert page.value("queue_tokens", model=PLAIN) == tokens
        assert page.value("queue_sequences", model=PLAIN) == 2
        assert page.value("admitted_tokens", model=PLAIN) == 5
        assert page.value("tokens_per_second", model=PLAIN) == 7
        assert page.value("replicas_alive", model=PLAIN) == 1


def test_two_servers_in_one_process_count_for_themselves(metrics: Metrics) -> None:
    other = Metrics(models=MODELS, encoders=[PLAIN])
    other.inputs.labels(PLAIN).inc()
    assert MetricsPage(metrics.page()).value("inputs_total", model=PLAIN) == 0


def test_a_counter_that_is_counted_elsewhere_is_read_when_the_page_is_asked_for(
    metrics: Metrics,
) -> None:
    name = b"embedding_server_dropped_log_lines_total"
    assert name + b" 0.0\n" in metrics.page()
    metrics.dropped_log_lines.set_function(lambda: 7)
    assert name + b" 7.0\n" in metrics.page()
