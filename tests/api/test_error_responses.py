"""Every error on every path is one JSON shape."""

from __future__ import annotations

import socket

import httpx
import pytest

from tests.server_process import ServerProcess


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
        ("POST", "/health", "GET"),
    ],
)
def test_a_wrong_method_is_405_and_says_which_are_allowed(
    http: httpx.Client, method: str, path: str, allow: str
) -> None:
    response = http.request(method, path)
    error = refusal(response, 405)
    assert error["type"] == "invalid_request_error"
    assert response.headers["allow"] == allow


def test_a_request_that_is_no_http_does_not_harm_the_server(
    server: ServerProcess, http: httpx.Client
) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"POST /v1/embeddings HTTP/9\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert http.get("/readyz").status_code == 200
