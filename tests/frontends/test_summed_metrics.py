from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from server.frontends.messages import Alive
from server.frontends.summed_metrics import (
    Changes,
    Counted,
    Samples,
    Told,
    samples_of,
    summed_page,
)
from server.frontends.wire import read_message, write
from server.metrics import Metrics
from tests.metrics_page import MetricsPage


def crossed(samples: Samples) -> Samples:
    """As another process gets it."""
    told = read_message(write(Alive(samples)))
    assert isinstance(told, Alive)
    return told.counted


def shown_by(metrics: Metrics) -> Samples:
    return samples_of(metrics.families(), alike=metrics.alike)


def page_of(metrics: Metrics, *others: Samples) -> MetricsPage:
    return MetricsPage(summed_page(metrics.families(), others))


def process(requests: int, *, status: str = "200", seconds: float = 0.003) -> Metrics:
    metrics = Metrics(["model"], ["model"])
    metrics.requests.labels("/v1/embeddings", status, "model").inc(requests)
    metrics.request_seconds.labels("/v1/embeddings").observe(seconds)
    metrics.unwritten_usage_tokens.set(10 * requests)
    metrics.ready.set(1)
    return metrics


def test_counts_and_gauges_are_added_and_what_is_alike_is_not() -> None:
    others = [crossed(shown_by(process(2))), crossed(shown_by(process(4, seconds=0.3)))]
    page = page_of(process(1), *others)
    route = "/v1/embeddings"
    assert page.value("requests_total", route=route, status="200", model="model") == 7
    assert page.value("request_seconds_count", route=route) == 3
    assert page.value("request_seconds_bucket", route=route, le="0.005") == 2
    assert page.value("request_seconds_bucket", route=route, le="0.5") == 3
    assert page.value("unwritten_usage_tokens") == 70
    assert page.value("ready") == 1
    assert page.total("build_info") == 1


def test_a_series_that_only_another_process_has_is_shown() -> None:
    page = page_of(process(1), crossed(shown_by(process(3, status="418"))))
    assert page.total("requests_total") == 4
    assert page.total("requests_total", status="418") == 3


def test_without_others_the_page_is_that_of_one_process() -> None:
    metrics = process(3)
    alone = {
        family.name: family for family in text_string_to_metric_families(metrics.page().decode())
    }
    summed = text_string_to_metric_families(summed_page(metrics.families(), []).decode())
    for family in summed:
        if not family.name.startswith("process_"):
            assert family == alone[family.name]


def test_of_a_process_that_is_gone_the_counts_stay() -> None:
    gone = Counted()
    for requests in (2, 5):
        gone.add(crossed(shown_by(process(requests))))
    page = page_of(process(1), crossed(gone.samples()))
    assert page.total("requests_total") == 8
    assert page.value("unwritten_usage_tokens") == 10


def test_only_what_has_changed_is_told_and_adds_up_to_all_of_it() -> None:
    metrics, changes, told = process(2), Changes(), Told()
    told.update(crossed(changes.take(shown_by(metrics))))
    metrics.requests.labels("/v1/embeddings", "418", "model").inc()
    metrics.unwritten_usage_tokens.set(0)
    own = {"embedding_server_requests", "embedding_server_unwritten_usage_tokens"}
    changed = [
        family for family in changes.take(shown_by(metrics)) if not family[0].startswith("process_")
    ]
    assert {family for family, _, _ in changed} == own
    assert sum(len(series) for _, _, series in changed) == 2
    told.update(crossed(changed))
    page = page_of(process(1), told.samples())
    assert page.total("requests_total") == 4
    assert page.total("requests_total", status="418") == 1
    assert page.value("unwritten_usage_tokens") == 10
