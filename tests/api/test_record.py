"""What is known of a request afterwards: when each stage began and ended, and what is told of it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from server.access import keys
from server.access.keys import Key, Scope
from server.api.record import RequestRecord
from server.errors import ApiError, IncorrectApiKey, MissingApiKey, ScopeMissing
from server.logs import ACCESS_LOGGER
from server.metrics import EMBEDDINGS_ROUTE, Metrics
from tests.metrics_page import MetricsPage


@pytest.fixture
def scope() -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": EMBEDDINGS_ROUTE}


@pytest.fixture
def record(scope: dict[str, Any]) -> RequestRecord:
    return RequestRecord.begin(scope, "trace-1")


def test_what_answers_a_request_finds_its_record(
    record: RequestRecord, scope: dict[str, Any]
) -> None:
    assert RequestRecord.of(scope) is record
    assert record.request_id == "trace-1"


def test_a_stage_has_begin_and_end_within_its_request(record: RequestRecord) -> None:
    with record.stage("read"):
        time.sleep(0.002)
    with record.stage("tokenize"):
        pass
    record.end()
    read, tokenize = record.stages["read"], record.stages["tokenize"]
    assert record.whole.begin_s <= read.begin_s
    assert read.begin_s + 0.002 <= read.end_s <= tokenize.begin_s <= tokenize.end_s
    assert tokenize.end_s <= record.whole.end_s
    assert read.seconds == read.end_s - read.begin_s


def test_a_stage_that_fails_has_an_end_too(record: RequestRecord) -> None:
    def fail() -> None:
        with record.stage("compute"):
            time.sleep(0.002)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert record.stages["compute"].seconds >= 0.002


def test_computing_is_split_into_waiting_and_computing_one_after_the_other(
    record: RequestRecord,
) -> None:
    with record.stage("compute") as whole:
        pass
    record.split_compute(0.25, 0.5)
    wait, compute = record.stages["wait"], record.stages["compute"]
    assert wait.begin_s == whole.begin_s
    assert wait.end_s == compute.begin_s == pytest.approx(whole.begin_s + 0.25)
    assert compute.seconds == pytest.approx(0.5)


def test_who_may_not_come_in_is_told_why(record: RequestRecord) -> None:
    with pytest.raises(MissingApiKey):
        record.require_key(Scope.EMBEDDINGS)
    record.caller = IncorrectApiKey("sk-wrong")
    with pytest.raises(IncorrectApiKey):
        record.require_key(Scope.EMBEDDINGS)
    record.caller = Key(id="a", name="a", scopes=frozenset({keys.Scope.MODELS}))
    with pytest.raises(ScopeMissing):
        record.require_key(Scope.EMBEDDINGS)
    assert record.require_key(Scope.MODELS) is record.caller


def finished(record: RequestRecord, error: ApiError | None = None) -> RequestRecord:
    record.model, record.num_inputs, record.num_tokens, record.error = "m", 2, 7, error
    with record.stage("read"):
        pass
    record.end()
    return record


def test_metrics_count_what_was_answered(record: RequestRecord, scope: dict[str, Any]) -> None:
    metrics = Metrics(["m"], ["m"])
    with record.stage("compute"):
        pass
    finished(record).report(scope, 200, metrics)
    page = MetricsPage(metrics.page())
    assert page.value("requests_total", route=EMBEDDINGS_ROUTE, status="200", model="m") == 1
    assert page.value("input_tokens_total", model="m") == 7
    assert page.value("stage_seconds_count", stage="read", model="m") == 1


def test_what_was_not_computed_has_stages_and_no_inputs(
    record: RequestRecord, scope: dict[str, Any]
) -> None:
    metrics = Metrics(["m"], ["m"])
    finished(record).report(scope, 200, metrics)
    page = MetricsPage(metrics.page())
    assert page.value("stage_seconds_count", stage="read", model="m") == 1
    assert page.value("input_tokens_total", model="m") == 0


def test_a_refusal_counts_as_one_and_has_no_inputs(
    record: RequestRecord, scope: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", ACCESS_LOGGER)
    metrics = Metrics(["m"], ["m"])
    finished(record, MissingApiKey()).report(scope, 401, metrics)
    page = MetricsPage(metrics.page())
    assert page.value("refusals_total", reason=MissingApiKey.code or MissingApiKey.type) == 1
    assert page.value("input_tokens_total", model="m") == 0
    assert page.value("stage_seconds_count", stage="read", model="m") == 0
    (line,) = caplog.records
    assert list(line.__dict__["fields"]["ms"]) == ["total", "read"]
