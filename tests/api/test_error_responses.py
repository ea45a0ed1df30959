"""Every error on every path is one JSON shape."""

from __future__ import annotations

import contextlib
import json
import socket

import httpx
import pytest
from fastapi import FastAPI

from server.http.app import create_app
from server.settings import Settings
from tests.conftest import PLAIN, client_of
from tests.server_process import ServerProcess


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """Without any model in memory."""
    return create_app(Settings(model=[PLAIN]))


def refusal(response: httpx.Response, status: int) -> dict[str, str | None]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error: dict[str, str | None] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/completions", "/docs", "/v1/embeddings/", "/%00"]
)
def test_an_unknown_url_is_404(http: httpx.Client, path: str) -> None:
    error = refusal(http.get(path), 404)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/embeddings", "POST"),
        ("DELETE", "/v1/embeddings", "POST"),
        ("OPTIONS", "/v1/embeddings", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/all-MiniLM-L6-v2", "GET"),
        ("POST", "/health", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405_and_says_which_are_allowed(
    http: httpx.Client, method: str, path: str, allow: str
) -> None:
    response = http.request(method, path)
    error = refusal(response, 405)
    assert error["type"] == "invalid_request_error"
    assert response.headers["allow"] == allow
    assert error["message"] == f"Method {method} is not allowed for {path}; allowed: {allow}."


def raw(server: ServerProcess, *parts: bytes) -> bytes:
    """What the server answers to these bytes until it closes or pauses."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            for part in parts:
                connection.sendall(part)
            while received := connection.recv(65536):
                answer += received
    return answer


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v1/embeddings HTTP/9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
        + b"a: b\r\n" * 20_000,  # more than a head may hold
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nlong: " + b"x" * 200_000,
    ],
)
def test_what_is_no_http_is_refused_in_the_one_shape(
    server: ServerProcess, http: httpx.Client, sent: bytes
) -> None:
    head, _, body = raw(server, sent).partition(b"\r\n\r\n")
    if head:  # with much unread the kernel resets the connection, which can lose the answer
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"application/json" in head
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
    else:
        assert len(sent) > 65536
    assert http.get("/readyz").status_code == 200


EMBEDDINGS_PATHS = [
    "/v1/embeddings/", "//v1/embeddings", "/v1/v1/embeddings", "/embeddings", "/v1//embeddings",
    "//embeddings//", "/v1/v1/v1/embeddings/",
]  # fmt: skip
MODELS_PATHS = ["//v1/models", "/v1/v1/models", "/models", "/models/", "//v1//models//"]


@pytest.mark.parametrize(
    ("path", "right"),
    [
        *((path, "/v1/embeddings") for path in EMBEDDINGS_PATHS),
        *((path, "/v1/models") for path in MODELS_PATHS),
        (f"/models/{PLAIN}", f"/v1/models/{PLAIN}"),
        ("//v1/models/organisation/model", "/v1/models/organisation/model"),
    ],
)
async def test_a_path_with_a_slash_or_a_v1_too_many_or_too_few_is_answered_with_the_right_one(
    app: FastAPI, path: str, right: str
) -> None:
    async with client_of(app) as client:
        for method in ("GET", "POST"):
            response = await client.request(method, f"http://localhost{path}")
            error = refusal(response, 404)
            assert error["code"] == "unknown_url"
            assert f"Unknown request URL: {method} {path}. Use {right}: " in str(error["message"])


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/embeddings", "/v1/embeddings/x", "/v1/model"])
async def test_a_path_that_means_nothing_gets_no_guess(app: FastAPI, path: str) -> None:
    async with client_of(app) as client:
        error = refusal(await client.get(path), 404)
        assert error["message"] == f"Unknown request URL: GET {path}."
