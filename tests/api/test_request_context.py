from __future__ import annotations

import re

import httpx
from fastapi import FastAPI

from server.app import create_app
from server.settings import Settings
from tests.conftest import PLAIN
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


def test_one_line_a_request_is_logged_but_none_for_a_probe_that_succeeds() -> None:
    with ServerProcess("--model", PLAIN) as running:
        headers = {"x-request-id": "trace-7"}
        httpx.get(f"{running.url}/readyz", headers=headers)
        body = {"model": PLAIN, "input": "a text that must not be logged"}
        httpx.post(f"{running.base_url}/embeddings", json=body, headers=headers)
        running.stop()
        lines = [line for line in running.log().splitlines() if "trace-7" in line]
    assert len(lines) == 1
    assert re.search(r"trace-7 POST /v1/embeddings 200 \d+\.\d ms$", lines[0])
    assert "must not be logged" not in lines[0]


def test_a_path_cannot_write_log_lines_of_its_own() -> None:
    with ServerProcess("--model", PLAIN) as running:
        httpx.get(f"{running.url}/a%0aforged%1b[31m")
        running.stop()
        lines = running.log().splitlines()
    (line,) = [line for line in lines if "forged" in line]
    assert re.search(r" GET /a%0aforged%1b\S+ 404 \d+\.\d ms$", line)


async def test_an_unexpected_failure_is_a_500_in_the_one_shape_without_a_traceback() -> None:
    app: FastAPI = create_app(Settings())

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("secret detail")

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/broken")
    assert response.status_code == 500
    assert "secret detail" not in response.text
    assert response.json()["error"]["type"] == "internal_server_error"
    assert response.headers["x-request-id"].startswith("req_")
