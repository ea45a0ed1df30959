from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI

from server.access import keyring
from server.access.keys import digest
from server.http.app import create_app
from server.logs import ACCESS_LOGGER, JsonFormatter, TextFormatter
from server.settings import Settings
from tests.conftest import PLAIN, AppOver, client_of
from tests.fakes import FakeBackend
from tests.server_process import ServerProcess


def test_a_sane_request_id_comes_back_and_others_are_replaced(http: httpx.Client) -> None:
    kept = http.get("/livez", headers={"x-request-id": "trace-42:a/b"})
    assert kept.headers["x-request-id"] == "trace-42:a/b"
    for insane in ("", "two words", "x" * 129, 'quote"'):
        replaced = http.get("/livez", headers={"x-request-id": insane})
        assert replaced.headers["x-request-id"].startswith("req_")
    first, second = (http.get("/livez").headers["x-request-id"] for _ in range(2))
    assert first != second


def test_the_time_taken_is_told_in_whole_milliseconds(http: httpx.Client) -> None:
    assert int(http.get("/livez").headers["openai-processing-ms"]) >= 0
    assert int(http.get("/nowhere").headers["openai-processing-ms"]) >= 0


# `<time> <LEVEL> <logger> request <fields>`, as people read it.
TEXT_LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO server\.access_log request ((?:[a-z_]+=\S+ ?)+)"
)
SECRET_TEXT = "a text that must not be logged"
KEY = "sk-log-0123456789abcdef"


def fields(line: str) -> dict[str, str]:
    """The fields of a text line."""
    found = TEXT_LINE.fullmatch(line)
    assert found, line
    return dict(field.split("=", 1) for field in found.group(1).split(" "))


def text_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [TextFormatter().format(record) for record in caplog.records]


async def test_one_line_a_request_is_logged_but_none_for_a_probe_that_succeeds(
    app_over: AppOver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    app = await app_over(FakeBackend())
    async with client_of(app) as client:
        headers = {"x-request-id": "trace-7"}
        for path in ("/readyz", "/livez", "/health", "/metrics"):
            assert (await client.get(path, headers=headers)).status_code == 200
        body = {"model": PLAIN, "input": ["x", SECRET_TEXT]}
        await client.post("/v1/embeddings", json=body, headers=headers)
    (line,) = [line for line in text_lines(caplog) if "trace-7" in line]
    assert not any(SECRET_TEXT in line for line in text_lines(caplog))
    found = fields(line)
    times = dict(part.split(":") for part in found.pop("ms").split(","))
    assert found == {
        "request_id": "trace-7",
        "method": "POST",
        "path": "/v1/embeddings",
        "status": "200",
        "model": PLAIN,
        "inputs": "2",
        "tokens": "12",
    }
    assert list(times) == ["total", "read", "tokenize", "wait", "compute", "serialize"]
    milliseconds = [float(time) for time in times.values()]
    assert min(milliseconds) >= 0
    assert sum(milliseconds[1:]) <= milliseconds[0] + 0.05  # each is rounded


async def test_a_refusal_is_logged_with_its_code_and_without_what_was_sent(
    app_over: AppOver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    app = await app_over(FakeBackend(), api_key=[KEY])
    async with client_of(app, "10.0.0.1") as client:
        url = "/v1/embeddings"
        headers = {"Authorization": f"Bearer {KEY}", "x-request-id": "right"}
        long = {"model": PLAIN, "input": SECRET_TEXT * 100}
        await client.post(url, json=long, headers=headers)
        await client.post(url, json={"model": SECRET_TEXT, "input": "x"}, headers=headers)
        wrong = {"Authorization": f"Bearer {KEY}-wrong", "x-request-id": "wrong"}
        await client.post(url, json=long, headers=wrong)
    log = text_lines(caplog)
    assert not any(SECRET_TEXT in line or "sk-log" in line for line in log)
    lines = [fields(line) for line in log if "request_id=" in line]
    assert [(line["status"], line["error"]) for line in lines] == [
        ("400", "context_length_exceeded"),
        ("404", "model_not_found"),
        ("401", "invalid_api_key"),
    ]
    assert lines[0]["model"] == PLAIN
    assert "model" not in lines[1]
    assert not any("tokens" in line for line in lines)


@pytest.mark.server
def test_nothing_that_is_sent_can_write_a_log_line_of_its_own() -> None:
    forged = "\n2026-01-01 00:00:00,000 INFO forged"
    with ServerProcess("--model", PLAIN) as running:
        httpx.get(f"{running.url}/a%0aforged%1b[31m")
        httpx.get(f"{running.url}/a%0d%0a{'forged' * 100}")
        httpx.get(f"{running.url}/?query=%0aforged")
        httpx.post(f"{running.base_url}/embeddings", json={"model": forged, "input": "x"})
        httpx.post(f"{running.base_url}/embeddings", json={forged: forged, "input": forged})
        httpx.post(f"{running.base_url}/embeddings", json={"model": PLAIN, "input": forged})
        for sent in (
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\nx-request-id: a\n2026 forged\r\n\r\n",
            b"GET /livez\n2026 forged HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET\n2026 forged /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /\x1b[31mforged HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"FORGED=1 /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ):
            answer(running, sent)
        running.stop()
        log = running.log()
    assert not re.search(r"[^\x20-\x7e\n]", log)
    for line in log.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ (server|uvicorn)", line), line
    paths = [fields(line)["path"] for line in log.splitlines() if "request_id=" in line]
    assert paths[:3] == ["/*", "/*", "/"]
    assert len(paths) >= 6


def answer(running: ServerProcess, sent: bytes) -> bytes:
    """What the server says to these bytes."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                received += part
        return received


def json_lines(running: ServerProcess) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in running.log().splitlines()]


@pytest.mark.server
def test_as_json_every_line_is_one_object() -> None:
    flags = ["--model", PLAIN, "--log-format", "json", "--log-level", "debug", "--api-key", KEY]
    with ServerProcess(*flags) as running:
        headers = {"Authorization": f"Bearer {KEY}", "x-request-id": "trace-8"}
        url = f"{running.base_url}/embeddings"
        httpx.get(f"{running.url}/livez")
        httpx.post(url, json={"model": PLAIN, "input": ["x", SECRET_TEXT]}, headers=headers)
        httpx.post(url, json={"model": SECRET_TEXT, "input": "x"}, headers=headers)
        httpx.post(url, json={}, headers={"Authorization": "Bearer sk-wrong"})
        httpx.get(f"{running.url}/a%0aforged")
        answer(running, b"no HTTP at all\r\n\r\n")
        running.stop()
        assert SECRET_TEXT not in running.log()
        assert "sk-" not in running.log()
        lines = json_lines(running)
    for line in lines:
        assert {"time", "level", "logger", "message"} <= set(line)
        time = datetime.fromisoformat(line["time"])
        assert time.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - time) < timedelta(minutes=5)
        assert line["level"] in {"debug", "info", "warning", "error"}
    requests = [line for line in lines if line["logger"] == "server.access_log"]
    shown = ("path", "status", "error", "model", "inputs", "tokens")
    assert [tuple(line.get(name) for name in shown) for line in requests] == [
        ("/livez", 200, None, None, None, None),
        ("/v1/embeddings", 200, None, PLAIN, 2, 12),
        ("/v1/embeddings", 404, "model_not_found", None, None, None),
        ("/v1/embeddings", 401, "invalid_api_key", None, None, None),
        ("/*", 404, "unknown_url", None, None, None),
    ]
    assert requests[0]["level"] == "debug"
    assert requests[1]["request_id"] == "trace-8"
    stages = ["total", "read", "tokenize", "wait", "compute", "serialize"]
    assert list(requests[1]["ms"]) == stages
    assert all(set(line["ms"]) >= {"total"} for line in requests)


def test_as_json_what_libraries_warn_of_is_one_object_too() -> None:
    program = "from server import logs; logs.configure('info', 'json'); import warnings; "
    command = [sys.executable, "-c", program + "warnings.warn('two\\nlines')"]
    log = subprocess.run(command, capture_output=True, check=True, text=True).stderr
    (line,) = log.splitlines()
    assert "two\nlines" in orjson.loads(line)["message"]


async def test_what_the_model_fails_on_is_logged_without_the_text(
    app_over: AppOver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    backend = FakeBackend()
    app = await app_over(backend, api_key=[KEY])
    backend.broken.set()
    headers = {"Authorization": f"Bearer {KEY}"}
    async with client_of(app) as client:
        failed = await client.post(
            "/v1/embeddings", json={"model": PLAIN, "input": SECRET_TEXT}, headers=headers
        )
    assert failed.status_code == 500
    lines = [orjson.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert any("fake failure" in line.get("traceback", "") for line in lines)
    assert SECRET_TEXT not in str(lines)
    assert KEY not in str(lines)
    (request,) = [line for line in lines if line["message"] == "request" and "fields" not in line]
    assert (request["status"], request["error"]) == (500, "internal_server_error")
    # A request that was not answered has no stages but those that it went through.
    assert list(request["ms"]) == ["total", "read", "tokenize", "compute"]


async def test_a_failure_that_nobody_expected_is_logged_with_its_request_and_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app: FastAPI = create_app(Settings())

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("detail\nforged")

    async with client_of(app) as client:
        await client.get("/broken", headers={"x-request-id": "trace-9"})
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert not any("\n" in line for line in lines)
    (failure,) = [orjson.loads(line) for line in lines if "traceback" in line]
    assert failure["level"] == "error"
    assert "trace-9" in failure["message"]
    assert "detail\nforged" in failure["traceback"]


async def test_an_unexpected_failure_is_a_500_in_the_one_shape_without_a_traceback() -> None:
    app: FastAPI = create_app(Settings())

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("secret detail")

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.get("/broken")
    assert response.status_code == 500
    assert "secret detail" not in response.text
    assert response.json()["error"]["type"] == "internal_server_error"
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("body", "stages"),
    [
        ([], ["total", "read"]),
        ({"model": PLAIN, "input": "word " * 999}, ["total", "read", "tokenize"]),
    ],
)
async def test_the_log_line_of_a_refusal_tells_the_stage_in_which_it_failed(
    app_over: AppOver, caplog: pytest.LogCaptureFixture, body: Any, stages: list[str]
) -> None:
    caplog.set_level("INFO", ACCESS_LOGGER)
    async with client_of(await app_over(FakeBackend())) as client:
        assert (await client.post("/v1/embeddings", json=body)).status_code == 400
    (line,) = [record for record in caplog.records if record.name == ACCESS_LOGGER]
    assert list(line.__dict__["fields"]["ms"]) == stages


@pytest.mark.parametrize("secret", [KEY, f"{KEY}-wrong"])
async def test_a_key_is_looked_up_once_a_request(
    app_over: AppOver, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    app = await app_over(FakeBackend(), api_key=[KEY])
    hashed: list[str] = []

    def counting(secret: str) -> str:
        hashed.append(secret)
        return digest(secret)

    monkeypatch.setattr(keyring, "digest", counting)
    async with client_of(app) as client:
        answer = await client.post(
            "/v1/embeddings",
            json={"model": PLAIN, "input": "x"},
            headers={"Authorization": f"Bearer {secret}"},
        )
    assert answer.status_code == (200 if secret == KEY else 401)
    assert hashed == [secret]
