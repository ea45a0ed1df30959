"""Stored keys, limits, budgets and usage at real servers."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

from server.access.counters import MemoryCounters
from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keys import Limits, Scope
from server.access.usage_report import By, usage_by
from tests.conftest import MATRYOSHKA, PLAIN, AppOver, client_of
from tests.fakes import FakeBackend
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess
from tests.services import Postgres, Redis
from tests.waiting import wait_for

pytestmark = pytest.mark.server

BODY = {"model": PLAIN, "input": "one two three"}
TOKENS = 5  # of that input, with the two that frame it


class Site:
    """A database, and the servers and clients that use it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = Database(url)
        self.store = KeyStore(self.database)

    def secret(self, name: str, **made: Any) -> str:
        """The secret of a new key."""
        limits = {field: made.pop(field) for field in Limits.__dataclass_fields__ if field in made}
        _, secret = self.store.create(name, limits=Limits(**limits), **made)
        return secret

    def serve(self, *flags: str) -> ServerProcess:
        return ServerProcess("--database-url", self.url, *flags)

    def tokens(self, by: By = By.KEY) -> dict[str, int]:
        return {row.name: row.tokens for row in usage_by(self.database, by)}


def client(server: ServerProcess, secret: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {secret}"}
    # Reading the authorities of TLS, of which nothing is used here, takes longer than a request.
    return httpx.Client(base_url=server.url, headers=headers, timeout=60, verify=False)


def embed(http: httpx.Client, **changes: Any) -> httpx.Response:
    return http.post("/v1/embeddings", json={**BODY, **changes})


@pytest.fixture(scope="module")
def common_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One site for all tests that neither stop its servers nor count its usage."""
    made = Site(f"sqlite:///{tmp_path_factory.mktemp('site') / 'keys.db'}")
    yield made
    made.database.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(f"sqlite:///{tmp_path / 'keys.db'}")
    yield made
    made.database.close()


@pytest.fixture
def postgres_site(postgres: Postgres) -> Iterator[Site]:
    made = Site(postgres.empty_database())
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def secrets(common_site: Site, request: pytest.FixtureRequest) -> dict[str, str]:
    """Of a key for each test that asks for `http`, made as its marker says."""
    common_site.secret("first")  # so that keys are asked for from the start
    found = {}
    for test in request.session.items:
        if test.path == request.path and "http" in getattr(test, "fixturenames", ()):
            assert isinstance(test, pytest.Function)
            made: dict[str, Any] = dict(test.callspec.params)
            found[test.nodeid] = common_site.secret(test.nodeid, **made["http"])
    return found


@pytest.fixture(scope="module")
def server(common_site: Site, secrets: dict[str, str]) -> Iterator[ServerProcess]:
    """Knows all the secrets from its start: a new key needs up to a second to be known."""
    with common_site.serve() as running:
        yield running


@pytest.fixture
def http(
    secrets: dict[str, str], server: ServerProcess, request: pytest.FixtureRequest
) -> Iterator[httpx.Client]:
    """A client with a key as the test's marker says."""
    with client(server, secrets[request.node.nodeid]) as http:
        yield http


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def with_limits(**made: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("http", [made], indirect=True, ids=[""])


def metrics_of(server: ServerProcess) -> MetricsPage:
    return MetricsPage(httpx.get(f"{server.url}/metrics").content)


def computed(server: ServerProcess) -> float:
    return metrics_of(server).total("computed_tokens_total")


# Each refusal.


def test_a_server_whose_database_holds_keys_asks_for_them(server: ServerProcess) -> None:
    assert "YOUR_KEY" in server.ready_line
    with httpx.Client(base_url=server.url) as nobody:
        assert error_of(embed(nobody), 401)["code"] is None
    with client(server, "sk-wrong") as wrong:
        assert error_of(embed(wrong), 401)["code"] == "invalid_api_key"


@with_limits(scopes=[Scope.MODELS])
def test_the_scope_is_checked_before_the_body(http: httpx.Client) -> None:
    error = error_of(http.post("/v1/embeddings", content=b"nonsense"), 403)
    assert (error["type"], error["code"]) == ("permission_error", "scope_missing")
    assert http.get("/v1/models").status_code == 200


async def test_the_metrics_need_the_scope_admin_from_elsewhere(
    app_over: AppOver, site: Site
) -> None:
    secrets = {scope: site.secret(scope, scopes=[scope]) for scope in Scope}
    app = await app_over(FakeBackend(), database_url=site.url)
    statuses = {}
    async with client_of(app, "10.0.0.1") as http:
        for scope, secret in secrets.items():
            answer = await http.get("/metrics", headers={"Authorization": f"Bearer {secret}"})
            statuses[scope] = answer.status_code
    assert statuses == {Scope.EMBEDDINGS: 403, Scope.MODELS: 403, Scope.ADMIN: 200}


@with_limits(models=[MATRYOSHKA], requests_per_minute=1)
def test_a_key_for_one_model_neither_uses_nor_sees_others(http: httpx.Client) -> None:
    for _ in range(2):  # a refused model costs no request
        error = error_of(embed(http), 403)
        assert (error["type"], error["param"]) == ("permission_error", "model")
    assert error_of(embed(http, model="no-such"), 404)["code"] == "model_not_found"
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == [MATRYOSHKA]
    assert http.get(f"/v1/models/{PLAIN}").status_code == 403
    assert embed(http, model="text-embedding-3-small").status_code == 200


@with_limits(requests_per_minute=1, token_budget=TOKENS)
def test_a_pinned_fingerprint_is_checked_before_anything_is_counted(http: httpx.Client) -> None:
    for pin in ("0" * 16, "no fingerprint"):
        headers = {"x-expect-embedding-fingerprint": pin}
        error_of(http.post("/v1/embeddings", json=BODY, headers=headers), 400)
    assert embed(http).status_code == 200


@with_limits(models=[MATRYOSHKA])
def test_a_model_that_the_key_may_not_use_does_not_tell_its_fingerprint(
    http: httpx.Client,
) -> None:
    headers = {"x-expect-embedding-fingerprint": "0" * 16}
    error_of(http.post("/v1/embeddings", json=BODY, headers=headers), 403)


@with_limits(requests_per_minute=2)
def test_requests_a_minute_are_limited_and_a_refused_one_is_not_computed(
    http: httpx.Client, server: ServerProcess
) -> None:
    assert [embed(http).status_code for _ in range(2)] == [200, 200]
    before = computed(server)
    refused = embed(http)
    error = error_of(refused, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    for word in ("billing", "quota"):
        assert word not in error["message"]
    assert computed(server) == before


@with_limits(tokens_per_minute=12)
def test_tokens_a_minute_are_limited(http: httpx.Client, server: ServerProcess) -> None:
    assert embed(http, input=["one two three"] * 2).status_code == 200
    before = computed(server)
    assert error_of(embed(http), 429)["type"] == "rate_limit_error"
    error = error_of(embed(http, input=["one two three"] * 3), 400)
    assert error["code"] == "max_tokens_per_request"
    assert computed(server) == before
    assert embed(http, input="").status_code == 400


@with_limits(token_budget=12)
def test_a_budget_is_spent_once(http: httpx.Client, server: ServerProcess) -> None:
    assert error_of(embed(http, input=["one two three"] * 3), 402)["type"] == "billing_error"
    assert [embed(http).status_code for _ in range(3)] == [200, 200, 402]
    before = computed(server)
    error = error_of(embed(http), 402)
    assert error["code"] == "token_budget_spent"
    assert computed(server) == before
    assert http.get("/v1/models").status_code == 200


@with_limits(token_budget=7, tokens_per_minute=100)
def test_what_the_budget_refuses_is_given_back_to_the_minute(http: httpx.Client) -> None:
    assert embed(http, input=["one two three"] * 2).status_code == 402
    assert embed(http).headers["x-ratelimit-remaining-tokens"] == "95"


@with_limits(requests_per_minute=100, tokens_per_minute=1000)
def test_every_answer_of_a_limited_key_tells_its_limits(http: httpx.Client) -> None:
    answers = [
        embed(http),
        embed(http, input=""),
        embed(http, model="no-such"),
        http.get("/v1/models"),
        http.get("/v1/models/no-such"),
        http.post("/v1/embeddings", content=b"nonsense"),
        http.get("/v1/embeddings"),
        http.get("/nothing"),
    ]
    statuses = [200, 400, 404, 200, 404, 400, 405, 404]
    assert [answer.status_code for answer in answers] == statuses
    for answer in answers:
        for unit, most in (("requests", "100"), ("tokens", "1000")):
            assert answer.headers[f"x-ratelimit-limit-{unit}"] == most
            assert 0 < int(answer.headers[f"x-ratelimit-remaining-{unit}"]) <= int(most)
            assert answer.headers[f"x-ratelimit-reset-{unit}"].endswith("s")


@with_limits()
def test_a_key_without_limits_has_no_such_headers(http: httpx.Client) -> None:
    assert not any(name.startswith("x-ratelimit") for name in embed(http).headers)


# The life of a key, and the ledger.


def test_changes_are_valid_on_every_server_within_seconds(common_site: Site) -> None:
    with common_site.serve() as one, common_site.serve() as two:
        secret = common_site.secret("short-lived")
        clients = [client(server, secret) for server in (one, two)]
        for http in clients:
            wait_for(lambda http=http: embed(http).status_code == 200, "the new key", 5)  # type: ignore[misc]
        common_site.store.revoke("short-lived")
        for http in clients:
            wait_for(lambda http=http: embed(http).status_code == 401, "the revocation", 5)  # type: ignore[misc]
            assert "revoked" in embed(http).json()["error"]["message"]
            http.close()


def test_a_server_without_keys_asks_for_them_once_there_is_one(site: Site) -> None:
    with site.serve() as server, client(server, "sk-none") as http:
        assert embed(http).status_code == 200
        secret = site.secret("first")
        wait_for(lambda: embed(http).status_code == 401, "being asked", 5)
        with client(server, secret) as known:
            assert embed(known).status_code == 200


def test_usage_is_complete_when_the_server_has_stopped(site: Site) -> None:
    secret = site.secret("team", token_budget=10_000)
    with site.serve("--api-key", "sk-static-0123456789") as server:
        with client(server, secret) as http, client(server, "sk-static-0123456789") as static:
            for user in ("ann", "bob", "bob"):
                assert embed(http, user=user).status_code == 200
            assert embed(http, user="ann", safety_identifier="carol").status_code == 200
            assert embed(static, model="text-embedding-3-small").status_code == 200
            assert embed(http, input="").status_code == 400
        assert server.stop() == 0
        log = server.log()
    for kept in (secret, "sk-static-0123456789"):
        assert kept not in log
    by_key = site.tokens()
    assert by_key.pop("team") == 4 * TOKENS
    ((static_name, static_tokens),) = by_key.items()
    assert (static_name[:7], static_tokens) == ("static-", TOKENS)
    assert site.tokens(By.USER) == {"ann": TOKENS, "bob": 2 * TOKENS, "carol": TOKENS, "": TOKENS}
    assert site.tokens(By.MODEL) == {PLAIN: 4 * TOKENS, MATRYOSHKA: TOKENS}
    assert site.store.find("team").spent_tokens == 4 * TOKENS


def test_a_killed_servers_usage_is_written_but_for_its_last_moment(site: Site) -> None:
    secret = site.secret("team")
    with site.serve() as server, client(server, secret) as http:
        assert embed(http).status_code == 200
        wait_for(lambda: site.tokens() == {"team": TOKENS}, "the ledger", 5)
        server.stop(signal.SIGKILL)


def test_listening_beyond_this_machine_needs_a_key_in_the_database(site: Site) -> None:
    with pytest.raises(AssertionError, match="keys create"):
        site.serve("--host", "0.0.0.0")
    site.secret("first")
    with site.serve("--host", "0.0.0.0") as server:
        assert "YOUR_KEY" in server.ready_line


# Several servers, and what they share going away.


def test_two_servers_share_limits_and_budgets(postgres_site: Site, shared_redis: Redis) -> None:
    by_requests = postgres_site.secret("requests", requests_per_minute=30)
    by_tokens = postgres_site.secret("tokens", tokens_per_minute=40 * TOKENS)
    by_budget = postgres_site.secret("budget", token_budget=50 * TOKENS)
    flags = ("--rate-limit-storage", shared_redis.url)
    with postgres_site.serve(*flags) as one, postgres_site.serve(*flags) as two:

        def ask(number: int) -> tuple[str, int]:
            name, secret = (
                ("requests", by_requests),
                ("tokens", by_tokens),
                ("budget", by_budget),
            )[number % 3]
            with client((one, two)[number // 3 % 2], secret) as http:
                return name, embed(http).status_code

        with ThreadPoolExecutor(50) as clients:
            answers = list(clients.map(ask, range(300)))
        assert one.stop() == two.stop() == 0
    for name, most, refused in (("requests", 30, 429), ("tokens", 40, 429), ("budget", 50, 402)):
        statuses = [status for asked, status in answers if asked == name]
        assert set(statuses) == {200, refused}
        assert statuses.count(200) == most
    assert postgres_site.tokens() == {
        "requests": 30 * TOKENS,
        "tokens": 40 * TOKENS,
        "budget": 50 * TOKENS,
    }
    assert postgres_site.store.find("budget").spent_tokens == 50 * TOKENS


def test_a_server_goes_on_while_database_and_redis_are_away(
    postgres_site: Site, postgres: Postgres, tmp_path: Path
) -> None:
    secret = postgres_site.secret("team", requests_per_minute=1000, token_budget=100_000)
    with Redis(tmp_path) as redis, postgres_site.serve("--rate-limit-storage", redis.url) as server:
        with client(server, secret) as http:
            assert embed(http).status_code == 200
            wait_for(lambda: postgres_site.tokens() == {"team": TOKENS}, "the ledger")

            def troubles() -> set[str]:
                return set(http.get("/readyz").json().get("troubles", ()))

            assert not troubles()
            with postgres.away(), redis.away():
                assert [embed(http).status_code for _ in range(30)] == [200] * 30
                wait_for(lambda: troubles() == {"database", "rate_limit_storage"}, "the troubles")
                page = metrics_of(server)
                assert page.value("database_up") == 0
                assert page.value("rate_limit_storage_up") == 0
                assert page.value("unwritten_usage_tokens") == 30 * TOKENS
                assert embed(http).status_code == 200
            wait_for(lambda: not troubles(), "the end of the troubles")
            assert embed(http).status_code == 200
        assert server.stop() == 0
    assert postgres_site.tokens() == {"team": 33 * TOKENS}
    assert postgres_site.store.find("team").spent_tokens == 33 * TOKENS


def test_a_postgresql_that_hangs_holds_up_nobody_for_long_nor_the_end(
    postgres_site: Site, postgres: Postgres
) -> None:
    secrets = [postgres_site.secret(f"team {n}", token_budget=100_000) for n in range(6)]
    with postgres_site.serve() as server:
        clients = [client(server, secret) for secret in secrets]
        with postgres.frozen(), ThreadPoolExecutor(6) as threads:
            assert [one.status_code for one in threads.map(embed, clients)] == [200] * 6
            wait_for(lambda: "troubles" in clients[0].get("/readyz").json(), "the trouble")
            assert embed(clients[0]).status_code == 200
            assert server.stop() == 0
        log = server.log()
        for http in clients:
            http.close()
    for name in ("team 0", "team 5"):
        key_id = postgres_site.store.find(name).id
        assert re.search(rf"usage not written: \S+ key={key_id} ", log)
        assert re.search(rf"budget \S.*: key={key_id} tokens=", log)


def test_usage_that_is_being_written_when_the_server_stops_is_told(site: Site) -> None:
    secret = site.secret("team")
    with site.serve() as server:
        with client(server, secret) as http:
            file = site.url.removeprefix("sqlite:///")
            with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                assert [embed(http).status_code for _ in range(3)] == [200] * 3
                time.sleep(1.2)  # the write has begun, and waits
                assert server.stop() == 0
        assert f"requests=3 tokens={3 * TOKENS}" in server.log()


@with_limits()
def test_a_user_that_no_database_could_hold_is_refused(http: httpx.Client) -> None:
    for field in ("user", "safety_identifier"):
        error = error_of(embed(http, **{field: "x" * 513}), 400)
        assert error["param"] == field
        assert embed(http, **{field: "\U0001f600" * 512}).status_code == 200


def test_who_wants_certainty_gets_503_while_limits_cannot_be_shared(
    common_site: Site, tmp_path: Path
) -> None:
    limited = common_site.secret("certain", requests_per_minute=1000)
    free = common_site.secret("without limits")
    with Redis(tmp_path) as redis:
        flags = ("--rate-limit-storage", redis.url, "--if-storage-fails", "refuse")
        with common_site.serve(*flags) as server:
            redis.stop()
            with client(server, limited) as http, client(server, free) as other:
                refused = embed(http)
                assert error_of(refused, 503)["code"] == "storage_unavailable"
                assert refused.headers["retry-after"] == "5"
                assert embed(other).status_code == 200


def test_usage_that_cannot_be_written_at_the_end_is_told(
    postgres_site: Site, postgres: Postgres
) -> None:
    secret = postgres_site.secret("team", token_budget=1_000)
    with postgres_site.serve() as server:
        with client(server, secret) as http, postgres.away():
            assert [embed(http, user="ann").status_code for _ in range(3)] == [200] * 3
            assert server.stop() == 0
        log = server.log()
    assert f"user='ann' requests=3 tokens={3 * TOKENS}" in log
    assert (
        f"budget not charged: key={postgres_site.store.find('team').id} tokens={3 * TOKENS}" in log
    )


# OpenAI's client.


def openai_client(server: ServerProcess, secret: str) -> openai.OpenAI:
    return openai.OpenAI(api_key=secret, base_url=server.base_url, max_retries=0)


@with_limits(requests_per_minute=1, models=[PLAIN])
def test_openais_client_raises_its_errors(http: httpx.Client, server: ServerProcess) -> None:
    secret = http.headers["authorization"].removeprefix("Bearer ")
    with pytest.raises(openai.AuthenticationError):
        openai_client(server, "sk-wrong").embeddings.create(model=PLAIN, input="x")
    known = openai_client(server, secret)
    with pytest.raises(openai.PermissionDeniedError):
        known.embeddings.create(model=MATRYOSHKA, input="x")
    known.embeddings.create(model=PLAIN, input="x")
    with pytest.raises(openai.RateLimitError) as caught:
        known.embeddings.create(model=PLAIN, input="x")
    assert caught.value.code == "rate_limit_exceeded"


async def test_openais_client_waits_as_told_and_gets_through(app_over: AppOver, site: Site) -> None:
    secret = site.secret("team", requests_per_minute=2)
    counters = MemoryCounters(window_s=1)
    app = await app_over(FakeBackend(), counters=counters, database_url=site.url)
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport) as http:
        patient = openai.AsyncOpenAI(
            api_key=secret, base_url="http://localhost/v1", http_client=http, max_retries=4
        )
        ask = patient.embeddings.create
        answers = await asyncio.gather(*(ask(model=PLAIN, input="x") for _ in range(4)))
    assert len(answers) == 4
    page = MetricsPage(app.state.services.metrics.page())
    assert page.value("refusals_total", reason="rate_limit_exceeded") >= 2
