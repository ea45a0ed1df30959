"""GET /metrics over HTTP: it says what was sent, and to whom it says it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.http.app import create_app
from server.metrics import ROUTES, STAGES
from server.settings import Settings
from tests.conftest import MATRYOSHKA, PLAIN, AppOver, client_of, engine_of
from tests.different_texts import different_texts
from tests.fakes import KILLS_THREAD, RAISES, FakeBackend
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess
from tests.waiting import wait_for

pytestmark = pytest.mark.server

KEY = "sk-metrics-0123456789"
EMBEDDINGS = "/v1/embeddings"


@pytest.fixture
def fresh() -> Iterator[httpx.Client]:
    """A server that nobody has asked for anything yet."""
    with (
        ServerProcess("--api-key", KEY) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


def read(client: httpx.Client) -> MetricsPage:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return MetricsPage(answer.content)


def test_the_page_is_prometheus_text(http: httpx.Client) -> None:
    answer = http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert read(http).value("ready") == 1


def test_the_counters_say_exactly_what_was_sent(fresh: httpx.Client) -> None:
    def post(**fields: object) -> httpx.Response:
        return fresh.post(
            EMBEDDINGS,
            json={"model": PLAIN, "input": "x", **fields},
            headers={"Authorization": f"Bearer {KEY}"},
        )

    sent = {
        PLAIN: [post(), post(input=["hello world", "hello"]), post(input=["many words " * 40] * 9)],
        MATRYOSHKA: [
            post(model=MATRYOSHKA),
            post(model="text-embedding-3-small", input=[[9906], [11, 1917]], dimensions=8),
        ],
    }
    refused = [
        *(post(model="gpt-5") for _ in range(3)),  # 404
        post(input=""),  # 400, before the model is looked at
        post(dimensions=99),  # 400, by the model
        post(input="word " * 300),  # 400, too long
        post(temperature=1),  # 400
        fresh.post(EMBEDDINGS, json={}),  # 401
        fresh.get("/v1/models"),  # 401
        fresh.get("/nowhere"),
        fresh.delete(EMBEDDINGS),
    ]
    assert [r.status_code for r in refused] == [404] * 3 + [400] * 4 + [401] * 2 + [404, 405]
    page = read(fresh)

    inputs = {PLAIN: 1 + 2 + 9, MATRYOSHKA: 1 + 2}
    for model, answers in sent.items():
        assert all(answer.status_code == 200 for answer in answers)
        assert page.value(
            "requests_total", route=EMBEDDINGS, status="200", model=model
        ) == len(answers)  # fmt: skip
        assert page.value("inputs_total", model=model) == inputs[model]
        tokens = sum(answer.json()["usage"]["prompt_tokens"] for answer in answers)
        assert page.value("input_tokens_total", model=model) == tokens
        for stage in set(STAGES) - {"load"}:
            assert page.value("stage_seconds_count", stage=stage, model=model) == len(answers)
            assert page.value("stage_seconds_sum", stage=stage, model=model) >= 0
    # Nine equal texts are computed once, and counted nine times.
    repeated = sent[PLAIN][2].json()["usage"]["prompt_tokens"] * 8 / 9
    total = page.total("input_tokens_total")
    assert page.value("computed_tokens_total", model=PLAIN) == total - repeated
    assert page.value("repeated_sequences_total", model=PLAIN) == 8

    asked = {
        (labels["route"], labels["status"], labels["model"]): value
        for labels, value in page.having("requests_total")
        if value and labels["status"] != "200"
    }
    assert asked == {
        (EMBEDDINGS, "404", ""): 3,
        (EMBEDDINGS, "400", ""): 2,
        (EMBEDDINGS, "400", PLAIN): 2,
        (EMBEDDINGS, "401", ""): 1,
        (EMBEDDINGS, "405", ""): 1,
        ("/v1/models", "401", ""): 1,
        ("other", "404", ""): 1,
    }
    reasons = {labels["reason"]: value for labels, value in page.having("refusals_total") if value}
    assert reasons == {
        "model_not_found": 3,
        "invalid_request_error": 3,
        "context_length_exceeded": 1,
        "authentication_error": 2,
        "unknown_url": 1,
        "method_not_allowed": 1,
    }
    assert sum(reasons.values()) == len(refused)
    answered = page.total("request_seconds_count", route=EMBEDDINGS)
    assert answered == page.total("requests_total", route=EMBEDDINGS) == 5 + 9
    assert page.value("queue_tokens", model=PLAIN) == 0
    assert page.value("admitted_tokens", model=PLAIN) == 0
    assert page.value("replicas_alive", model=PLAIN) >= 1


def test_what_the_workers_did_adds_up(fresh: httpx.Client) -> None:
    texts = [text for words in range(3, 53) for text in different_texts(6, words)]
    answer = fresh.post(
        EMBEDDINGS,
        json={"model": PLAIN, "input": texts},
        headers={"Authorization": f"Bearer {KEY}"},
    )
    page = read(fresh)
    tokens = answer.json()["usage"]["prompt_tokens"]
    assert page.value("computed_tokens_total", model=PLAIN) == tokens
    assert page.value("micro_batch_sequences_sum", model=PLAIN) == 300
    assert page.value("micro_batch_tokens_sum", model=PLAIN) == tokens + page.value(
        "padding_tokens_total", model=PLAIN
    )
    batches = page.value("micro_batch_tokens_count", model=PLAIN)
    assert batches == page.value("micro_batch_seconds_count", model=PLAIN) >= tokens / 512
    assert page.value("tokens_per_second", model=PLAIN) > 0
    assert page.value("sequence_failures_total", model=PLAIN) == 0


def test_every_route_has_a_name_of_its_own(fresh: httpx.Client) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    paths = {route: route.replace("{model_id:path}", PLAIN) for route in ROUTES if route != "other"}
    for path in paths.values():
        fresh.get(path, headers=headers)
    page = read(fresh)
    asked = {labels["route"]: value for labels, value in page.having("request_seconds_count")}
    assert asked == {**dict.fromkeys(paths, 1), "other": 0}


def test_a_client_that_leaves_is_counted_as_499(fresh: httpx.Client) -> None:
    many = {"model": PLAIN, "input": different_texts(200, 250)}
    headers = {"Authorization": f"Bearer {KEY}"}
    with pytest.raises(httpx.ReadTimeout):
        fresh.post(EMBEDDINGS, json=many, headers=headers, timeout=0.5)
    labels = {"route": EMBEDDINGS, "status": "499", "model": PLAIN}
    deadline = time.monotonic() + 20
    while not read(fresh).value("requests_total", **labels):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    page = read(fresh)
    assert page.total("requests_total", route=EMBEDDINGS) == 1
    assert page.total("inputs_total") == page.total("refusals_total") == 0
    assert page.value("admitted_tokens", model=PLAIN) == 0


async def test_failures_and_deaths_are_counted(app_over: AppOver) -> None:
    app = await app_over(FakeBackend(), model_token_ids=[PLAIN])
    engine = engine_of(app)

    def restarts() -> float:
        page = MetricsPage(app.state.services.metrics.page())
        return page.value("replica_restarts_total", model=PLAIN)

    async with client_of(app) as client:
        for token in (RAISES, KILLS_THREAD):
            await client.post(EMBEDDINGS, json={"model": PLAIN, "input": [token]})
        await asyncio.to_thread(wait_for, lambda: restarts() == 1 and engine.sound)
        await client.post(EMBEDDINGS, json={"model": PLAIN, "input": [7]})
        page = MetricsPage((await client.get("/metrics")).content)
    assert page.value("requests_total", route=EMBEDDINGS, status="500", model=PLAIN) == 2
    assert page.value("requests_total", route=EMBEDDINGS, status="200", model=PLAIN) == 1
    assert page.value("refusals_total", reason="internal_server_error") == 2
    assert page.value("sequence_failures_total", model=PLAIN) == 2
    assert page.value("replica_restarts_total", model=PLAIN) == 1
    assert page.value("input_tokens_total", model=PLAIN) == 1


async def test_ready_is_what_readyz_says() -> None:
    app = create_app(Settings(model=[PLAIN]))
    async with client_of(app) as client:
        assert (await client.get("/readyz")).status_code == 503
        assert MetricsPage((await client.get("/metrics")).content).value("ready") == 0


@given(st.text(max_size=40), st.sampled_from(["GET", "POST", "BREW"]))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_that_a_stranger_sends_makes_a_series_of_its_own(
    http: httpx.Client, path: str, method: str
) -> None:
    before = {str(labels) for labels, _ in read(http).having("request_seconds_count")}
    http.request(method, "/" + quote(path))
    http.post(EMBEDDINGS, json={"model": path, "input": "x"})
    page = read(http)
    assert {str(labels) for labels, _ in page.having("request_seconds_count")} == before
    models = {labels["model"] for labels, _ in page.having("requests_total")}
    assert models == {"", PLAIN, MATRYOSHKA}
    assert {labels["route"] for labels, _ in page.having("requests_total")} == set(ROUTES)


# Who may read it.


def own_address() -> str | None:
    """An address of this machine that is not loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return address


@pytest.mark.parametrize("public", [False, True])
def test_a_server_asks_those_from_elsewhere_for_a_key_unless_told_otherwise(public: bool) -> None:
    flags = ["--host", "0.0.0.0", "--api-key", KEY, "--model", PLAIN]
    if public:
        flags.append("--public-metrics")
    with ServerProcess(*flags) as running:
        port = running.url.rpartition(":")[2]
        assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
        if (address := own_address()) is not None:
            url = f"http://{address}:{port}/metrics"
            assert httpx.get(url).status_code == (200 if public else 401)
            headers = {"Authorization": f"Bearer {KEY}"}
            assert httpx.get(url, headers=headers).status_code == 200
            wrong = httpx.get(url, headers={"Authorization": "Bearer sk-wrong"})
            assert wrong.status_code == (200 if public else 401)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),  # by IPv4, on a socket that takes both
        ("::ffff:192.0.2.1", False),
        ("192.0.2.1", False),
        ("10.0.0.1", False),
        ("2001:db8::1", False),
        ("::", False),
        ("0.0.0.0", False),
        ("localhost", False),  # a name proves nothing
        ("", False),
    ],
)
async def test_only_loopback_is_this_machine(address: str, local: bool) -> None:
    guarded = create_app(Settings(model=[PLAIN], api_key=[KEY]))
    async with client_of(guarded, address) as client:
        answer = await client.get("/metrics")
        assert answer.status_code == (200 if local else 401)
        if not local:
            assert answer.json()["error"]["type"] == "authentication_error"
            assert "embedding_server_" not in answer.text
        headers = {"Authorization": f"Bearer {KEY}", "X-Forwarded-For": "127.0.0.1"}
        assert (await client.get("/metrics", headers=headers)).status_code == 200
        del headers["Authorization"]
        forged = await client.get("/metrics", headers=headers)
        assert forged.status_code == (200 if local else 401)
    for open_settings in (
        Settings(model=[PLAIN], api_key=[KEY], public_metrics=True),
        Settings(model=[PLAIN]),  # there are no keys
    ):
        async with client_of(create_app(open_settings), address) as client:
            assert (await client.get("/metrics")).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:8000", 200), ("[::1]", 200), ("evil.example", 401)],
)
async def test_a_web_page_whose_name_points_to_this_machine_is_not_this_machine(
    host: str, status: int
) -> None:
    guarded = create_app(Settings(model=[PLAIN], api_key=[KEY]))
    async with client_of(guarded) as client:
        assert (await client.get("/metrics", headers={"Host": host})).status_code == status
