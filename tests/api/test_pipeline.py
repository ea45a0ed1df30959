"""A second route on the pipeline: its own lines are what it reads, asks and writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi import APIRouter, FastAPI, Request, Response

from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keys import Limits, Scope
from server.api.pipeline import Pipeline
from server.api.plain_route import PlainRoute, described
from server.api.schemas import InputField, ModelName, RequestBody
from server.logs import ACCESS_LOGGER
from tests.conftest import PLAIN, AppOver, client_of
from tests.fakes import FakeBackend
from tests.metrics_page import MetricsPage

router = APIRouter(route_class=PlainRoute)


class CountRequest(RequestBody):
    """The body of POST /v1/count."""

    model: ModelName
    input: InputField


@router.post("/v1/count", openapi_extra=described(CountRequest))
async def count(request: Request) -> Response:
    """Count the tokens of texts."""
    async with Pipeline.enter(request, Scope.EMBEDDINGS) as pipeline:
        asked = await pipeline.read(CountRequest)
        async with pipeline.use_model(asked.model) as model:
            reading = pipeline.plan_reading(model, asked.input)
            async with pipeline.admit(model, reading) as work:
                counts = [len(ids) for ids in await work.tokenize()]
            body = orjson.dumps({"counts": counts})
            return await pipeline.answer(lambda: body)


BODY: dict[str, Any] = {"model": PLAIN, "input": ["one two three", "one"]}


class Counting:
    """The application with the second route, and a key of each kind."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient, secrets: dict[str, str]) -> None:
        self.app = app
        self.client = client
        self._secrets = secrets

    async def post(
        self, path: str = "/v1/count", *, body: object = BODY, key: str = "open", **headers: str
    ) -> httpx.Response:
        headers["Authorization"] = f"Bearer {self._secrets.get(key, key)}"
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        return await self.client.post(path, content=content, headers=headers)


@pytest.fixture
async def counting(app_over: AppOver, tmp_path: Path) -> AsyncIterator[Counting]:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    database = Database(url)
    store = KeyStore(database)
    secrets = {
        "open": store.create("open")[1],
        "reader": store.create("reader", scopes=[Scope.MODELS])[1],
        "elsewhere": store.create("elsewhere", models=["another"])[1],
        "limited": store.create("limited", limits=Limits(requests_per_minute=2))[1],
    }
    database.close()
    bounds: dict[str, Any] = {
        "max_body_bytes": 10_000,
        "max_concurrent_requests": 2,
        "max_request_tokens": 900,
    }
    app = await app_over(FakeBackend(), database_url=url, **bounds)
    app.include_router(router)
    async with client_of(app) as client:
        yield Counting(app, client, secrets)
    await app.state.services.access.close()


async def test_it_answers_like_the_first(counting: Counting) -> None:
    answer = await counting.post()
    assert answer.json() == {"counts": [5, 3]}
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-embedding-fingerprint"]) == 16
    assert answer.headers["x-request-id"].startswith("req_")


REFUSALS: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "wrong key": ({"key": "sk-wrong"}, 401, "invalid_api_key"),
    "no scope": ({"key": "reader"}, 403, "scope_missing"),
    "not its model": ({"key": "elsewhere"}, 403, "model_not_allowed"),
    "no text": ({"body": b"\xff"}, 400, None),
    "no input": ({"body": {"model": PLAIN}}, 400, "missing_required_parameter"),
    "empty input": ({"body": {**BODY, "input": ""}}, 400, None),
    "unknown model": ({"body": {**BODY, "model": "unknown"}}, 404, "model_not_found"),
    "long input": ({"body": {**BODY, "input": "word " * 400}}, 400, "context_length_exceeded"),
    "tokens": ({"body": {**BODY, "input": ["word " * 200] * 5}}, 400, "max_tokens_per_request"),
    "large body": ({"body": b" " * 10_001}, 413, "body_too_large"),
    "other vectors": (
        {"x-expect-embedding-fingerprint": "0" * 16},
        400,
        "embedding_fingerprint_mismatch",
    ),
    "encoding": ({"content-encoding": "br"}, 415, "unsupported_content_encoding"),
}


@pytest.mark.parametrize(("asked", "status", "code"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_it_refuses_like_the_first(
    counting: Counting, asked: dict[str, Any], status: int, code: str | None
) -> None:
    refused = await counting.post(**asked)
    first = await counting.post("/v1/embeddings", **asked)
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert (first.status_code, first.content) == (refused.status_code, refused.content)


async def test_what_only_the_first_knows_is_refused(counting: Counting) -> None:
    refused = await counting.post(body={**BODY, "dimensions": 3})
    assert refused.status_code == 400
    assert "dimensions" in refused.json()["error"]["message"]


async def test_its_requests_count_against_the_limit_of_the_key(counting: Counting) -> None:
    for left in ("1", "0"):
        answer = await counting.post(key="limited")
        assert answer.headers["x-ratelimit-remaining-requests"] == left
    assert (await counting.post(key="limited")).status_code == 429


async def test_it_takes_a_seat_and_leaves_it(counting: Counting) -> None:
    seats = counting.app.state.services.seats
    taken = [seats.take("a"), seats.take("b")]
    refused = await counting.post()
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "server_overloaded"
    for seat in taken:
        seat.give_back()
    for _ in range(3):
        assert (await counting.post()).status_code == 200


async def test_it_is_no_more_in_flight_once_answered_and_refused_by_a_server_that_drains(
    counting: Counting,
) -> None:
    models = counting.app.state.services.models
    assert (await counting.post()).status_code == 200
    assert models.in_flight == 0
    models.drain()
    assert (await counting.post()).json()["error"]["code"] == "server_draining"


async def test_its_log_line_tells_its_stages_and_tokens(
    counting: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", ACCESS_LOGGER)
    await counting.post()
    (line,) = [record for record in caplog.records if record.name == ACCESS_LOGGER]
    fields: dict[str, Any] = line.__dict__["fields"]
    assert list(fields["ms"]) == ["total", "read", "tokenize", "serialize"]
    assert (fields["model"], fields["inputs"], fields["tokens"]) == (PLAIN, 2, 8)


async def test_its_stages_are_metrics_and_its_inputs_do_not_count_as_vectors(
    counting: Counting,
) -> None:
    await counting.post()
    await asyncio.sleep(0)  # what a request leaves behind has the loop's next turn
    page = MetricsPage(counting.app.state.services.metrics.page())
    for stage in ("read", "tokenize", "serialize"):
        assert page.value("stage_seconds_count", stage=stage, model=PLAIN) == 1
    assert page.value("inputs_total", model=PLAIN) == 0


async def test_it_ends_at_the_deadline(app_over: AppOver) -> None:
    app = await app_over(FakeBackend(), request_timeout_s=0.05)
    slow = APIRouter(route_class=PlainRoute)

    @slow.post("/v1/slow")
    async def never(request: Request) -> Response:
        async with Pipeline.enter(request, Scope.EMBEDDINGS):
            await asyncio.Event().wait()
        raise AssertionError("unreachable")

    app.include_router(slow)
    async with client_of(app) as client:
        answer = await client.post("/v1/slow")
    assert answer.json()["error"]["code"] == "request_timeout"


def test_openapi_describes_it_with_its_own_body() -> None:
    app = FastAPI()
    app.include_router(router)
    described_route = app.openapi()["paths"]["/v1/count"]["post"]
    schema = described_route["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"model", "input"}
    assert described_route["parameters"][0]["name"] == "x-expect-embedding-fingerprint"
