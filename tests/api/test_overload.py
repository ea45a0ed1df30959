"""A server with more work than it can do: it refuses what would wait too long, and works on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from fastapi import FastAPI

from server.api import body as body_module
from tests.conftest import PLAIN, AppOver, client_of
from tests.different_texts import different_ids
from tests.fakes import FakeBackend
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess
from tests.waiting import wait_for

pytestmark = pytest.mark.server

EMBEDDINGS = "/v1/embeddings"
PATIENCE_S = 120
LONG_TEXTS = [f"{n} " + "word " * (n % 60 + 10) for n in range(320)]
LONG_TOKENS = 13_200  # of these
LONG_WORK = {"model": PLAIN, "input": LONG_TEXTS}
SOME_SECONDS_OF_WORK = {"model": PLAIN, "input": LONG_TEXTS[:160]}  # for one thread
# A fraction of a second: 1,000 tokens.
TEXTS = [f"{n} " + "word " * 30 for n in range(30)]
BULK = {"model": PLAIN, "input": TEXTS}
QUERY = {"model": PLAIN, "input": "what is the capital of France"}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[httpx.Client]:
    """A client of a server with one thread and these settings."""
    with (
        ServerProcess("--model", PLAIN, "--threads", "1", *flags) as running,
        httpx.Client(base_url=running.url, timeout=PATIENCE_S) as client,
    ):
        yield client
        assert client.get("/readyz").status_code == 200
        running.stop()
        assert "Traceback" not in running.log()


def post(client: httpx.Client, body: dict[str, Any], key: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return client.post(EMBEDDINGS, json=body, headers=headers)


def page(client: httpx.Client) -> MetricsPage:
    return MetricsPage(client.get("/metrics").content)


def in_flight(
    pool: ThreadPoolExecutor, client: httpx.Client, body: dict[str, Any], key: str = ""
) -> Future[httpx.Response]:
    """A request that has been let in and is being computed."""
    computed = page(client).value("micro_batch_tokens_count", model=PLAIN)
    answer = pool.submit(post, client, body, key)
    deadline = time.monotonic() + PATIENCE_S
    while page(client).value("micro_batch_tokens_count", model=PLAIN) < computed + 2:
        assert not answer.done(), answer.result().text
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return answer


def assert_refused(answer: httpx.Response, code: str = "server_overloaded") -> int:
    """In OpenAI's shape; how many seconds it says to wait."""
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == ("upstream_error", code, None)
    assert error["message"]
    retry_after = answer.headers["retry-after"]
    assert retry_after.isdecimal()
    assert 1 <= int(retry_after) <= 60
    return int(retry_after)


def vectors(answer: httpx.Response) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]])


async def ask(client: httpx.AsyncClient, body: dict[str, Any], key: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return await client.post(EMBEDDINGS, json=body, headers=headers)


def told(app: FastAPI) -> MetricsPage:
    return MetricsPage(app.state.services.metrics.page())


async def long_work(app: FastAPI, client: httpx.AsyncClient, key: str = "") -> asyncio.Task[Any]:
    """A request that has been let in and is being computed, as far as the backend goes."""
    asking = asyncio.create_task(ask(client, LONG_WORK, key))
    await admitted(app, LONG_TOKENS)
    return asking


async def admitted(app: FastAPI, tokens: int) -> None:
    """Return when so many have been let in, and none of them is computed."""
    await asyncio.to_thread(
        wait_for, lambda: told(app).value("admitted_tokens", model=PLAIN) == tokens
    )


async def test_what_the_queue_cannot_hold_is_refused_and_what_is_let_in_is_right(
    app_over: AppOver,
) -> None:
    backend = FakeBackend()
    app = await app_over(backend, max_queue_tokens=2000)
    async with client_of(app) as client:
        alone = vectors(await ask(client, BULK))
        backend.gate.clear()
        asking = await long_work(app, client)  # larger than the queue, but it was idle
        for _ in range(3):
            assert_refused(await ask(client, BULK))
        assert not asking.done()
        backend.gate.set()
        assert len(vectors(await asking)) == len(LONG_TEXTS)
        answers = await asyncio.gather(*(ask(client, BULK) for _ in range(8)))
        accepted = [answer for answer in answers if answer.status_code == 200]
        assert accepted
        for answer in answers:
            if answer in accepted:
                assert (vectors(answer) == alone).all()
            else:
                assert_refused(answer)
        refused = 3 + len(answers) - len(accepted)
        assert told(app).value("refusals_total", reason="server_overloaded") == refused
        assert told(app).value("admitted_tokens", model=PLAIN) == 0
        assert (vectors(await ask(client, BULK)) == alone).all()


async def test_what_would_wait_too_long_is_refused_while_a_query_is_let_in(
    app_over: AppOver,
) -> None:
    backend = FakeBackend()
    app = await app_over(backend, max_wait_s=0.02)
    async with client_of(app) as client:
        expected = vectors(await ask(client, QUERY))
        backend.turnstile = threading.Semaphore(0)
        asking = await long_work(app, client)
        assert_refused(await ask(client, BULK))
        query = asyncio.create_task(ask(client, QUERY))
        await admitted(app, LONG_TOKENS + 8)
        backend.turnstile.release(5)  # of more than fifty
        assert (vectors(await query) == expected).all()
        assert not asking.done()
        backend.turnstile.release(1000)
        assert len(vectors(await asking)) == len(LONG_TEXTS)


async def test_another_key_is_let_in_and_answered_behind_the_work_of_one(
    app_over: AppOver,
) -> None:
    backend = FakeBackend()
    app = await app_over(backend, api_key=["sk-one", "sk-other"], max_queue_tokens=50_000)
    async with client_of(app) as client:
        backend.turnstile = threading.Semaphore(0)
        asking = await long_work(app, client, "sk-one")
        others = [asyncio.create_task(ask(client, body, "sk-other")) for body in (QUERY, BULK)]
        await admitted(app, LONG_TOKENS + 8 + 990)
        backend.turnstile.release(20)  # of more than fifty
        for other in others:
            vectors(await other)
        assert not asking.done()
        backend.turnstile.release(1000)
        assert (await asking).status_code == 200


async def test_each_key_has_a_share_of_its_own(app_over: AppOver) -> None:
    backend = FakeBackend()
    keys = ["sk-one", "sk-other"]
    app = await app_over(backend, model_token_ids=[PLAIN], api_key=keys, max_batch_tokens=200)
    backend.gate.clear()
    tokens = 0
    async with client_of(app) as client:
        answers = []
        for key, length in [*[("sk-one", 100)] * 4, ("sk-other", 150)]:
            body = {"model": PLAIN, "input": different_ids(4, length)}
            answers.append(asyncio.create_task(ask(client, body, key)))
            tokens += 4 * length
            await admitted(app, tokens)
        await asyncio.to_thread(wait_for, lambda: len(backend.shapes) == 2)  # one at the start
        backend.gate.set()
        assert [(await answer).status_code for answer in answers] == [200] * 5
    # The other key's turn comes next, though what came before it fills seven micro-batches more.
    assert [tokens for _, tokens in backend.shapes[1:4]].count(150) >= 1
    assert told(app).value("admitted_tokens", model=PLAIN) == 0


@pytest.mark.parametrize("limit", [("--max-queue-tokens", "2000"), ("--max-wait-s", "0.02")])
def test_who_comes_back_as_told_is_let_in(pool: ThreadPoolExecutor, limit: tuple[str, str]) -> None:
    with serving(*limit) as client:
        long_work = in_flight(pool, client, SOME_SECONDS_OF_WORK)
        answer = post(client, BULK)
        wait_s = assert_refused(answer)
        deadline = time.monotonic() + PATIENCE_S
        while answer.status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(wait_s)
            answer = post(client, BULK)
            if answer.status_code != 200:
                wait_s = assert_refused(answer)
        assert len(vectors(answer)) == len(TEXTS)
        assert long_work.result().status_code == 200


def test_openais_client_raises_its_error_or_waits_and_gets_through(
    pool: ThreadPoolExecutor,
) -> None:
    with (
        ServerProcess(
            *("--model", PLAIN, "--threads", "1", "--max-queue-tokens", "2000")
        ) as running,
        httpx.Client(base_url=running.url, timeout=PATIENCE_S) as http,
        openai.OpenAI(base_url=running.base_url, api_key="sk-none", max_retries=0) as impatient,
        openai.OpenAI(base_url=running.base_url, api_key="sk-none", max_retries=60) as patient,
    ):
        long_work = in_flight(pool, http, SOME_SECONDS_OF_WORK)
        with pytest.raises(openai.InternalServerError) as refused:
            impatient.embeddings.create(model=PLAIN, input=TEXTS)
        assert isinstance(refused.value, openai.APIStatusError)
        assert refused.value.status_code == 503
        assert refused.value.code == "server_overloaded"
        assert refused.value.type == "upstream_error"
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
        assert not long_work.done()
        answer = patient.embeddings.create(model=PLAIN, input=TEXTS)
        assert len(answer.data) == len(TEXTS)
        assert long_work.result().status_code == 200


# Seats.


def start_upload(
    client: httpx.Client, body: bytes, sent: int, more_head: str = ""
) -> socket.socket:
    """A connection that has sent so much of a request's body and stalls."""
    host, port = str(client.base_url).removeprefix("http://").rstrip("/").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    head = f"POST {EMBEDDINGS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{more_head}\r\n"
    connection.sendall(head.encode() + body[:sent])
    return connection


def hold_seat(client: httpx.Client, body: bytes) -> socket.socket:
    """An upload that stalls, once it has a seat: only then is it asked to go on."""
    upload = start_upload(client, body, 0, "Expect: 100-continue\r\n")
    assert upload.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    upload.sendall(body[:10])
    return upload


def until(client: httpx.Client, status: int) -> httpx.Response:
    """Ask until this is the answer."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := post(client, QUERY)).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


def test_who_is_still_sending_holds_a_seat_and_more_than_the_seats_are_refused() -> None:
    body = json.dumps(QUERY).encode()
    with serving("--max-concurrent-requests", "2") as client:
        expected = vectors(post(client, QUERY))
        first = hold_seat(client, body)
        assert vectors(post(client, QUERY)).shape == (1, 384)  # one seat is left
        second = hold_seat(client, body)
        assert assert_refused(post(client, QUERY)) == 1
        with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as other:
            long_body = {"model": PLAIN, "input": ["x" * 1_000_000]}
            assert_refused(post(other, long_body))  # unread
        for path in ("/livez", "/readyz", "/health", "/v1/models", "/metrics"):
            assert client.get(path).status_code == 200

        first.close()  # a client that leaves gives its seat back
        until(client, 200)
        third = hold_seat(client, body)
        assert_refused(post(client, QUERY))

        second.sendall(body[10:])  # one that is answered, too
        answer = second.recv(1 << 20)
        while not answer.endswith(b"}"):
            answer += second.recv(1 << 20)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert np.abs(vectors(until(client, 200)) - expected).max() < 1e-5
        second.close()
        third.close()


def test_no_more_than_some_large_bodies_are_held_at_a_time_and_queries_still_get_in() -> None:
    largest = 4 << 20
    body = b" " * largest
    with serving("--max-memory-bytes", str(5 * largest)) as client:
        uploads = [start_upload(client, body, largest - 1) for _ in range(3)]
        wait_for(lambda: page(client).value("request_memory_bytes") == 3 * (largest - 1))
        refused = start_upload(client, body, largest - 1)  # three fit
        assert refused.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
        for _ in range(5):
            assert post(client, QUERY).status_code == 200
        large = {"model": PLAIN, "input": "", "user": "x" * (largest - 1000)}
        with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as other:
            assert_refused(post(other, large))
        uploads.pop().close()  # who leaves gives the bytes back, and who is answered
        for upload in uploads:
            upload.sendall(b" ")
            assert upload.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                other = stack.enter_context(httpx.Client(base_url=client.base_url))
                assert post(other, large).status_code == 400
        for upload in (refused, *uploads):
            upload.close()


def test_an_answer_that_nobody_reads_counts_until_it_is_read() -> None:
    body = json.dumps({"model": PLAIN, "input": ["a"] * 2048}).encode()
    with serving("--max-memory-bytes", str(48 << 20)) as client:  # it takes 28

        def status() -> int:
            head = {"content-type": "application/json"}
            return client.post(EMBEDDINGS, content=body, headers=head).status_code

        assert status() == 200
        unread = start_upload(client, body, len(body))
        assert unread.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200"
        for _ in range(3):
            assert status() == 503
        assert post(client, QUERY).status_code == 200
        while not unread.recv(1 << 20).endswith(b"}}"):
            pass
        wait_for(lambda: status() == 200)
        unread.close()


async def test_refused_and_wrong_requests_keep_no_seat(app_over: AppOver) -> None:
    app = await app_over(FakeBackend(), max_concurrent_requests=1, max_body_bytes=2048)
    async with client_of(app) as client:
        for _ in range(5):
            assert (await ask(client, {})).status_code == 400
            assert (await client.post(EMBEDDINGS, content=b"{")).status_code == 400
            assert (await ask(client, {**QUERY, "model": "gpt-5"})).status_code == 404
            assert (await ask(client, {**QUERY, "input": "word " * 300})).status_code == 400
            assert (await ask(client, {**QUERY, "input": "x" * 4096})).status_code == 413
        assert (await ask(client, QUERY)).status_code == 200


def test_without_a_key_nobody_holds_a_seat() -> None:
    flags = ["--max-concurrent-requests", "1", "--api-key", "sk-seat"]
    with serving(*flags) as client:
        strangers = [start_upload(client, b"{}" * 50, 10) for _ in range(5)]
        for stranger in strangers:
            assert stranger.recv(100).startswith(b"HTTP/1.1 401 ")
        assert post(client, QUERY, "sk-seat").status_code == 200
        for stranger in strangers:
            stranger.close()


# Requests that take too long.


async def test_a_request_that_takes_too_long_is_given_up_and_the_server_works_on(
    app_over: AppOver,
) -> None:
    backend = FakeBackend()
    app = await app_over(backend, model_token_ids=[PLAIN], request_timeout_s=0.5)
    backend.gate.clear()
    async with client_of(app) as client:
        huge = {"model": PLAIN, "input": different_ids(1_000, 200)}
        given_up = await ask(client, huge)
        assert_refused(given_up, "request_timeout")
        assert "0.5 s" in given_up.json()["error"]["message"]
        backend.gate.set()
        assert (await ask(client, {"model": PLAIN, "input": [7]})).status_code == 200
    page = told(app)
    assert page.value("refusals_total", reason="request_timeout") == 1
    assert page.value("admitted_tokens", model=PLAIN) == 0
    # What was left of it is never computed.
    assert page.value("queue_tokens", model=PLAIN) == 0
    assert page.value("computed_tokens_total", model=PLAIN) <= 201


def test_who_stalls_an_upload_is_given_up_and_loses_the_seat() -> None:
    body = json.dumps(QUERY).encode()
    flags = ["--request-timeout-s", "3", "--max-concurrent-requests", "1"]
    with serving(*flags) as client:
        stalling = hold_seat(client, body)
        assert_refused(post(client, QUERY))
        answer = stalling.recv(1 << 16)
        while not answer.endswith(b"}"):
            answer += stalling.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"request_timeout"' in answer
        stalling.close()
        assert post(client, QUERY).status_code == 200


def test_one_key_that_stalls_all_it_may_shuts_no_other_out() -> None:
    keys = ("--api-key", "sk-greedy", "--api-key", "sk-other")
    body = json.dumps(QUERY).encode()
    with serving("--max-concurrent-requests", "10", *keys) as client:
        stalled = []
        while post(client, QUERY, "sk-greedy").status_code == 200:
            head = "Authorization: Bearer sk-greedy\r\nExpect: 100-continue\r\n"
            stalled.append(start_upload(client, body, 0, head))
            assert stalled[-1].recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert len(stalled) == 8
        for _ in range(3):
            assert post(client, QUERY, "sk-other").status_code == 200
        for upload in stalled:
            upload.close()


async def test_a_body_that_hardly_moves_is_given_up(
    app_over: AppOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "PATIENCE_S", 0.1)
    app = await app_over(FakeBackend(), max_concurrent_requests=1)

    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    async with client_of(app) as client:
        answer = await client.post(EMBEDDINGS, content=trickle())
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "body_too_slow"
        assert (await ask(client, QUERY)).status_code == 200


async def test_a_slow_body_that_moves_has_its_time(
    app_over: AppOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "PATIENCE_S", 0.1)
    app = await app_over(FakeBackend())

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 1024  # good for a second
            await asyncio.sleep(0.05)
        yield json.dumps(QUERY).encode()

    async with client_of(app) as client:
        assert (await client.post(EMBEDDINGS, content=slowly())).status_code == 200


async def test_a_worker_that_is_stuck_does_not_keep_its_client_for_ever(app_over: AppOver) -> None:
    backend = FakeBackend()
    app = await app_over(backend, model_token_ids=[PLAIN], request_timeout_s=0.1)
    backend.gate.clear()
    async with client_of(app) as client:
        body = {"model": PLAIN, "input": [7]}
        assert_refused(await client.post(EMBEDDINGS, json=body), "request_timeout")
        backend.gate.set()
        assert (await client.post(EMBEDDINGS, json=body)).status_code == 200
