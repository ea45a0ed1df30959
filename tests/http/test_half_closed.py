"""Clients that close their sending half are answered; those that have left cost no more work."""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection

import httpx
import pytest

from tests.conftest import PLAIN
from tests.different_texts import different_texts
from tests.http.test_protocol import BODY, OFFER, POST
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess
from tests.waiting import wait_for

pytestmark = pytest.mark.server

TEXTS = 60
LONG_WORK = json.dumps({"model": PLAIN, "input": different_texts(TEXTS, 250)}).encode()
MANY = json.dumps({"model": PLAIN, "input": ["x"] * 400}).encode()


def request(body: bytes = BODY, head: bytes = POST) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def connect(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def to_the_end(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def everything(server: ServerProcess, sent: bytes) -> bytes:
    """All that comes back, until the server closes, if nothing is sent after this."""
    with connect(server) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return to_the_end(connection)


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (request(), 1),
        (request(head=POST.replace(b"1.1", b"1.0")), 1),
        (request(head=POST + OFFER), 1),
        (request() * 3, 3),
        (request(MANY), 1),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 1),
        (request()[:-3], 0),
        (request() + POST, 1),
        (b"", 0),
    ],
    ids=[
        "one",
        "of HTTP/1.0",
        "of h2c",
        "three",
        "large",
        "probe",
        "part",
        "one and a part",
        "none",
    ],
)
def test_who_has_sent_all_gets_every_answer_and_the_connection_ends(
    server: ServerProcess, sent: bytes, answers: int
) -> None:
    received = everything(server, sent)
    assert received.count(b"HTTP/1.1 200 OK") == answers
    assert received.endswith(b"}") or not answers
    if b"HTTP/1.0" in sent:  # such a client knows no interim answers
        assert received.startswith(b"HTTP/1.1 200 OK")


def test_a_client_that_reads_by_the_book_finds_the_answer_behind_the_interim_one(
    server: ServerProcess,
) -> None:
    client = HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    client.putrequest("POST", "/v1/embeddings")
    client.putheader("Content-Length", str(len(BODY)))
    client.endheaders(BODY)
    client.sock.shutdown(socket.SHUT_WR)
    answer = client.getresponse()
    assert answer.status == 200
    assert len(json.loads(answer.read())["data"]) == 1
    client.close()


def test_who_has_left_takes_all_waiting_work_along() -> None:
    with (
        ServerProcess("--model", PLAIN, "--threads", "1", "--max-wait-s", "600") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):

        def told(name: str, **labels: str) -> float:
            return MetricsPage(client.get("/metrics").content).total(name, **labels)

        connections = [connect(server) for _ in range(5)]
        for connection in connections:
            connection.sendall(request(LONG_WORK))
        wait_for(lambda: told("admitted_tokens") > 4 * TEXTS * 250, "work")
        for connection in connections:
            connection.close()
        wait_for(lambda: told("requests_total", status="499") == 5, "the notice of it")
        wait_for(lambda: told("admitted_tokens") == 0, "the end of their work")
        assert told("computed_tokens_total") < 5 * TEXTS * 250 / 2
