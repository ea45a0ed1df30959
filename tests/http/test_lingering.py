"""Who is refused while it still sends gets its answer, and cannot make use of that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import PLAIN
from tests.http.test_half_closed import connect, request, to_the_end
from tests.http.test_protocol import OFFER, POST
from tests.server_process import ServerProcess
from tests.waiting import wait_for

pytestmark = pytest.mark.server

KEY = "sk-0123456789abcdef0123456789"
CLOSE = b"Connection: close\r\n"
CLOSING_OFFER = OFFER.replace(b"Upgrade, ", b"Upgrade, close, ", 1)
NUM_BYTES = 8 * 1024 * 1024  # more than the kernel takes on itself


@pytest.fixture(scope="module")
def closed() -> Iterator[ServerProcess]:
    """Asks for a key, and is not patient."""
    with ServerProcess("--model", PLAIN, "--api-key", KEY, "--keep-alive-timeout-s", "2") as server:
        yield server


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (POST + CLOSE + b"Content-Length: %d\r\n\r\n" % NUM_BYTES, b"401"),
        (POST + CLOSE + b"Content-Length: %d\r\n\r\n" % (64 * NUM_BYTES), b"401"),
        (POST.replace(b"1.1", b"1.0") + b"Content-Length: %d\r\n\r\n" % NUM_BYTES, b"401"),
        (POST + CLOSING_OFFER + b"Content-Length: %d\r\n\r\n" % NUM_BYTES, b"401"),
        (POST + b"X-Long: ", b"400"),
    ],
    ids=["closing", "a part", "of HTTP/1.0", "of h2c", "a head without end"],
)
def test_a_refusal_reaches_who_still_sends_and_the_connection_ends(
    closed: ServerProcess, head: bytes, status: bytes
) -> None:
    with connect(closed) as connection:
        connection.sendall(head)
        for _ in range(0, NUM_BYTES, 65536):
            connection.sendall(b"x" * 65536)  # no reset
        received = to_the_end(connection)
    assert received.startswith(b"HTTP/1.1 " + status)
    assert b"connection: close" in received.lower()
    assert received.endswith(b"}")


def test_who_keeps_a_refused_connection_is_left(closed: ServerProcess) -> None:
    with connect(closed) as connection:
        connection.sendall(POST + CLOSE + b"Content-Length: 99999\r\n\r\n")
        assert to_the_end(connection).startswith(b"HTTP/1.1 401")

        def is_left() -> bool:
            try:
                connection.sendall(b"x")
            except ConnectionError:
                return True
            return False

        wait_for(is_left, "the end of the connection")


def test_what_follows_the_last_request_of_a_connection_is_not_answered(
    server: ServerProcess,
) -> None:
    last = request(head=POST + CLOSE)
    with connect(server) as connection:
        connection.sendall(last + request() + POST)
        received = to_the_end(connection)
    assert received.count(b"HTTP/1.1 ") == received.count(b"HTTP/1.1 200 OK") == 1


@pytest.mark.parametrize("offer", [b"", OFFER], ids=["plain", "upgrade-offered"])
def test_http_1_0_has_no_interim_answers_and_no_second_request(
    server: ServerProcess, offer: bytes
) -> None:
    head = POST.replace(b"1.1", b"1.0") + offer + b"Expect: 100-continue\r\n"
    with connect(server) as connection:
        connection.sendall(request(head=head))
        received = to_the_end(connection)
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in received.lower()


def test_an_offered_upgrade_is_no_warning() -> None:
    with ServerProcess("--model", PLAIN) as server, connect(server) as connection:
        connection.sendall(request(head=POST + OFFER))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        assert server.stop() == 0
        assert "WARNING" not in server.log()
