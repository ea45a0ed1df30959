"""Bytes that no HTTP client sends, or that only some do, at a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import version
from typing import Any, Self

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from server.errors import InvalidRequest
from server.http.h11_connection import UpgradeIgnoringProtocol
from server.http.patient_connection import (
    MAX_HEAD_BYTES,
    MAX_UNWANTED_BYTES,
    LimitedState,
    PatientConnection,
)
from server.http.protocol import MAX_PIPELINED
from server.http.refusals import MAX_HEADERS, refuse
from server.http.waiting_room import WaitingRoom
from tests.conftest import REPOSITORY
from tests.fuzz_connection import CONFIG, Wire
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess
from tests.slow_reader import SlowReader
from tests.waiting import wait_for

pytestmark = pytest.mark.server

BODY = b'{"model": "all-MiniLM-L6-v2", "input": "x"}'
POST = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
PLAIN = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
OFFERING = POST + OFFER + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


class Connection:
    """A bare connection that reads one answer at a time."""

    def __init__(self, server: ServerProcess, *, receive_bytes: int | None = None) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self._socket = socket.socket()
        self._socket.settimeout(30)
        if receive_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._socket.connect((host, int(port)))
        self._received = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self._socket.sendall(part)

    def answer(self) -> tuple[int, dict[str, object]]:
        """Status and JSON of the next answer."""
        head = self._until(b"\r\n\r\n").lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(self._received) < length:
            self._receive()
        body, self._received = self._received[:length], self._received[length:]
        return int(head.split()[1]), json.loads(body)

    def refused(self) -> bool:
        """Whether the server has ended the connection, with its 400 unless the kernel lost it."""
        try:
            status, body = self.answer()
        except ConnectionError:
            return True
        error = body["error"]
        assert isinstance(error, dict)
        return status == 400 and error["type"] == "invalid_request_error"

    def _until(self, end: bytes) -> bytes:
        while end not in self._received:
            self._receive()
        head, _, self._received = self._received.partition(end)
        return bytes(head)

    def _receive(self) -> None:
        received = self._socket.recv(65536)
        if not received:
            raise ConnectionResetError("closed by the server")
        self._received += received


@pytest.fixture
def connection(server: ServerProcess) -> Connection:
    return Connection(server)


def ok(connection: Connection) -> bool:
    status, body = connection.answer()
    return status == 200 and body["object"] == "list"


def test_an_offered_upgrade_costs_neither_the_body_nor_the_connection(
    connection: Connection,
) -> None:
    with connection:
        for request in (PLAIN, OFFERING, PLAIN, OFFERING):
            connection.send(request)
            assert ok(connection)


@pytest.mark.parametrize(
    ("target", "version", "hosts", "status"),
    [
        ("http://localhost:1/livez", "1.1", ["evil.example"], 200),
        ("HTTP://[::1]/livez?x", "1.1", ["evil.example"], 200),
        ("http://evil.example/livez", "1.1", ["localhost"], 400),
        ("http://evil.example/livez", "1.0", [], 400),
        ("http://user@localhost/livez", "1.1", ["localhost"], 400),
        ("http://localhost/livez", "1.1", [], 400),
        ("http://localhost/livez", "1.1", ["localhost", "localhost"], 400),
        ("//evil.example/livez", "1.1", ["localhost"], 404),
        ("http:///livez", "1.1", ["localhost"], 400),
        ("http://localhost", "1.1", ["localhost"], 404),
        ("http://localhost?x=/livez", "1.1", ["localhost"], 404),
    ],
)
@pytest.mark.parametrize("offer", [b"", OFFER], ids=["plain", "upgrade-offered"])
def test_of_a_target_that_names_a_host_that_one_counts(
    connection: Connection, target: str, version: str, hosts: list[str], status: int, offer: bytes
) -> None:
    named = "".join(f"Host: {host}\r\n" for host in hosts)
    with connection:
        connection.send(f"GET {target} HTTP/{version}\r\n{named}".encode(), offer, b"\r\n")
        assert connection.answer()[0] == status


def test_the_target_counts_also_long_after_an_offered_upgrade(connection: Connection) -> None:
    with connection:
        connection.send(OFFERING)
        assert ok(connection)
        for target, host, status in (
            ("http://localhost:1/livez", "evil.example", 200),
            ("HTTP://[::1]/livez?x", "evil.example", 200),
            ("/livez", "localhost", 200),
            ("http://evil.example/livez", "localhost", 400),
        ):
            connection.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert connection.answer()[0] == status


@pytest.mark.parametrize("size", [1, 7, 100])
def test_requests_in_pieces_are_read_whatever_they_offer(connection: Connection, size: int) -> None:
    with connection:
        for request in (PLAIN, OFFERING):
            connection.send(*(request[at : at + size] for at in range(0, len(request), size)))
            assert ok(connection)


def test_pipelined_requests_are_answered_in_order(connection: Connection) -> None:
    with connection:
        connection.send(PLAIN + b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" + PLAIN)
        assert ok(connection)
        assert connection.answer() == (200, {"status": "alive"})
        assert ok(connection)


@pytest.mark.parametrize("offer", [b"", OFFER], ids=["plain", "upgrade-offered"])
def test_a_head_of_many_headers_is_refused(connection: Connection, offer: bytes) -> None:
    length = b"Content-Length: %d\r\n\r\n" % len(BODY)
    with connection:
        connection.send(POST, offer, b"a:b\r\n" * (MAX_HEADERS - 10), length, BODY)
        assert ok(connection)
        connection.send(POST, offer, b"a:b\r\n" * MAX_HEADERS, length, BODY)
        assert connection.refused()


def test_more_requests_in_a_row_than_may_wait_end_the_connection(
    connection: Connection, http: httpx.Client
) -> None:
    with connection:
        connection.send(PLAIN * (MAX_PIPELINED + 1))
        for _ in range(MAX_PIPELINED + 1):
            assert ok(connection)
        connection.send(PLAIN * 500)
        assert connection.refused()
    assert http.get("/readyz").status_code == 200


def test_half_heads_take_so_much_memory_and_give_it_back(small: ServerProcess) -> None:
    half = POST + b"x-a: " + b"a" * 60_000
    with contextlib.ExitStack() as stack:

        def fill() -> list[Connection]:
            several = [stack.enter_context(Connection(small)) for _ in range(100)]
            for one in several:
                one.send(half)
            return several

        def has_room() -> bool:
            with Connection(small) as one:
                with contextlib.suppress(ConnectionError):  # refused before its end
                    one.send(half, b"\r\nContent-Length: %d\r\n\r\n" % len(BODY), BODY)
                    return one.answer()[0] == 200
                return False

        several = fill()
        refused = several[-1].answer()  # of 4 MiB
        assert refused[0] == 503
        assert not has_room()
        with Connection(small) as usual:
            usual.send(PLAIN)
            assert ok(usual)
        for one in several:
            one.__exit__()
        wait_for(has_room, "room for another head")


def test_an_upgrade_offered_behind_an_unanswered_request_is_refused(
    connection: Connection, http: httpx.Client
) -> None:
    with connection:
        connection.send(PLAIN + OFFERING)
        assert connection.refused()
    assert http.get("/readyz").status_code == 200


def test_a_body_in_tiny_chunks_is_no_long_head(connection: Connection) -> None:
    text = json.dumps({"model": "all-MiniLM-L6-v2", "input": "word " * 6_000, "truncate": True})
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in text.encode())
    assert len(chunks) > 2 * MAX_HEAD_BYTES
    with connection:
        connection.send(POST + b"Transfer-Encoding: chunked\r\n\r\n", chunks, b"0\r\n\r\n")
        assert ok(connection)


LONG = [b"x" * 1000] * (4 * MAX_HEAD_BYTES // 1000)


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nlong: ",
        b"GET /livez HTTP/1.1\r\nlong",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1; extension=",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\ntrailer: ",
        POST + OFFER + b"long: ",
    ],
    ids=["path", "header", "name", "extension", "trailer", "upgrade"],
)
def test_what_is_too_long_outside_a_body_is_refused(
    connection: Connection, http: httpx.Client, begin: bytes
) -> None:
    with connection:
        try:
            connection.send(begin, *LONG)
        except ConnectionError:
            pass
        else:
            assert connection.refused()
    assert http.get("/readyz").status_code == 200


def test_many_short_trailers_are_refused_too(connection: Connection) -> None:
    trailers = [b"a%d: b\r\n" % number for number in range(100_000)]
    with connection:
        try:
            connection.send(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n")
            for at in range(0, len(trailers), 1000):
                connection.send(b"".join(trailers[at : at + 1000]))
        except ConnectionError:
            pass
        else:
            assert connection.refused()


@pytest.fixture(scope="module")
def impatient() -> Iterator[ServerProcess]:
    """Keeps a connection open for a second only."""
    with ServerProcess("--keep-alive-timeout-s", "1") as server:
        yield server


@pytest.fixture(scope="module")
def small() -> Iterator[ServerProcess]:
    flags = ("--model", "all-MiniLM-L6-v2", "--max-memory-bytes", str(16 * 1024 * 1024))
    with ServerProcess(*flags) as server:
        yield server


@pytest.mark.parametrize("first", [b"", PLAIN, OFFERING], ids=["new", "used", "upgrade-offered"])
@pytest.mark.parametrize("then", [b"", POST], ids=["nothing", "half a head"])
def test_who_sends_no_whole_head_is_waited_for_a_while(
    impatient: ServerProcess, first: bytes, then: bytes
) -> None:
    with Connection(impatient) as connection:
        began_s = time.monotonic()
        if first:
            connection.send(first)
            assert ok(connection)
        connection.send(then)
        with pytest.raises(ConnectionError):  # the socket's own patience is no such error
            connection.answer()
        assert time.monotonic() - began_s > 0.9


@pytest.mark.parametrize("first", [b"", PLAIN, OFFERING], ids=["new", "used", "upgrade-offered"])
def test_a_blank_line_wins_no_time(impatient: ServerProcess, first: bytes) -> None:
    with Connection(impatient) as connection:
        if first:
            connection.send(first)
            assert ok(connection)
        connection.send(b"\r\n")
        assert connection.refused()  # h11 takes it for bad HTTP


def drip(connection: Connection, content: bytes) -> None:
    """Send a byte at a time."""
    for place in range(len(content)):
        time.sleep(0.1)
        connection.send(content[place : place + 1])


def test_a_head_that_comes_byte_by_byte_wins_no_time(impatient: ServerProcess) -> None:
    with Connection(impatient) as connection, pytest.raises(ConnectionError):
        drip(connection, POST)


def test_a_body_may_take_longer_than_a_head(impatient: ServerProcess) -> None:
    with Connection(impatient) as connection:
        head, body = PLAIN[: -len(BODY)], BODY
        connection.send(head, body[:10])
        time.sleep(1.5)
        connection.send(body[10:])
        assert ok(connection)


@pytest.mark.parametrize("offer", [b"", OFFER], ids=["plain", "upgrade-offered"])
def test_a_body_that_was_answered_early_may_still_come(
    impatient: ServerProcess, offer: bytes
) -> None:
    with Connection(impatient) as connection:
        connection.send(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\n", offer)
        connection.send(b"Content-Length: %d\r\n\r\n" % 600_000)
        for _ in range(30):
            connection.send(b"x" * 20_000)
            time.sleep(0.1)
        status, _ = connection.answer()
        assert status == 404
        connection.send(PLAIN)
        assert ok(connection)


def test_a_body_that_was_answered_early_and_hardly_moves_is_not_waited_for(
    impatient: ServerProcess,
) -> None:
    with Connection(impatient) as connection:
        connection.send(
            b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n"
        )
        with pytest.raises(ConnectionError):
            drip(connection, b"x" * 50)


@pytest.mark.parametrize("offer", [b"", OFFER], ids=["plain", "upgrade-offered"])
def test_of_a_body_that_was_answered_early_only_so_much_is_read(
    impatient: ServerProcess, offer: bytes
) -> None:
    sent = 0
    with Connection(impatient) as connection:
        connection.send(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\n", offer)
        connection.send(b"Content-Length: %d\r\n\r\n" % 10**9)
        with contextlib.suppress(ConnectionError):
            while sent < 10**9:
                connection.send(b"x" * 1_000_000)
                sent += 1_000_000
    assert MAX_UNWANTED_BYTES <= sent < MAX_UNWANTED_BYTES + 30_000_000  # what the kernel holds


def test_who_does_not_read_answers_is_not_waited_for(impatient: ServerProcess) -> None:
    with Connection(impatient, receive_bytes=4096) as connection:
        connection.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400)
        with pytest.raises(ConnectionError):
            drip(connection, b"\r\n" * 40)


class UntilItsEnd(Wire):
    """A wire to which nothing may be written behind its end."""

    def write(self, content: Any) -> None:
        assert not self.is_over
        super().write(content)


async def test_who_is_refused_for_a_body_is_not_refused_for_its_head_as_well() -> None:
    async def app(scope: object, receive: Callable[[], Awaitable[object]], send: object) -> None:
        await receive()

    CONFIG.loaded_app = app
    wire = UntilItsEnd()
    connection = UpgradeIgnoringProtocol(CONFIG, LimitedState(WaitingRoom(10**9)), {})
    connection.connection_made(wire)
    headers = b"".join(b"x-%d: y\r\n" % n for n in range(MAX_HEADERS + 1))
    chunked = b"Transfer-Encoding: chunked\r\n\r\nno size\r\n"
    connection.data_received(POST + headers + chunked)
    connection.connection_lost(None)
    assert wire.written.count(b"HTTP/1.1 400") == 1
    await asyncio.gather(*connection.tasks)


def test_who_reads_none_of_several_answers_is_no_failure_of_the_server(
    impatient: ServerProcess,
) -> None:
    failures = impatient.log().count("Traceback")
    body = json.dumps({"model": "all-MiniLM-L6-v2", "input": ["x"] * 400}).encode()
    with (
        Connection(impatient, receive_bytes=4096) as connection,
        httpx.Client(base_url=impatient.url) as client,
    ):

        def held_bytes() -> float:
            return MetricsPage(client.get("/metrics").content).value("request_memory_bytes")

        connection.send((POST + b"Content-Length: %d\r\n\r\n" % len(body) + body) * 3)
        wait_for(lambda: held_bytes() > 0, "the first answer")
        wait_for(lambda: held_bytes() == 0, "the end of the server's patience")
    assert impatient.log().count("Traceback") == failures


class Reading(PatientConnection):
    """A connection whose client has read so much whenever it is looked at."""

    timeout_keep_alive = 75
    file: socket.socket | None = None

    def __init__(self) -> None:
        self.loop = self.transport = self  # type: ignore[assignment]
        self.unread, self.is_open = 0, True
        self.looks: list[Callable[[], None]] = []  # those that are to come

    def call_later(self, seconds: float, look: Callable[[], None]) -> None:
        assert seconds == 75
        self.looks.append(look)

    def get_write_buffer_size(self) -> int:
        return self.unread

    def get_extra_info(self, name: str) -> socket.socket | None:
        assert name == "socket"
        return self.file

    def abort(self) -> None:
        self.is_open = False


@pytest.mark.parametrize(
    ("bytes_per_s", "is_kept"),
    [
        ([0], [False]),
        ([1000], [False]),
        ([1100, 1100, 1100], [True, True, True]),
        ([3000, 0], [True, False]),
    ],
)
def test_who_reads_an_answer_too_slowly_is_left(
    bytes_per_s: list[int], is_kept: list[bool]
) -> None:
    connection = Reading()
    connection.unread = 300_000
    connection.watch_reader()
    seen = []
    for speed in bytes_per_s:
        connection.unread -= 75 * speed
        (look,) = connection.looks
        connection.looks.clear()
        look()
        seen.append(connection.is_open)
    assert seen == is_kept
    assert bool(connection.looks) == is_kept[-1]


class RequestAnswer:
    """An answer that has begun."""

    disconnected = response_complete = False
    response_started = True

    def __init__(self) -> None:
        self.message_event = asyncio.Event()


class Unsent(asyncio.Transport):
    """A transport that has not sent all yet, nor will."""

    def __init__(self, connection: Answering) -> None:
        self._connection = connection

    def is_closing(self) -> bool:
        return not self._connection.is_open

    def close(self) -> None:
        """It waits for what is not sent."""

    def abort(self) -> None:
        self._connection.is_open = False

    def get_write_buffer_size(self) -> int:
        return self._connection.unread

    def get_extra_info(self, name: str, default: object = None) -> None:
        return None


class Answering(Reading):
    """In the midst of an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.transport = Unsent(self)

    def forget(self) -> None:
        """Nothing lies here."""


def test_who_is_refused_in_the_midst_of_an_answer_and_does_not_read_is_left() -> None:
    connection, answer = Answering(), RequestAnswer()
    connection.unread = 10  # too few for the loop to tell that the client does not read
    refuse(connection, answer, InvalidRequest("no HTTP"))
    (look,) = connection.looks
    look()
    assert not connection.is_open


def test_what_the_kernel_has_passed_on_is_read_too() -> None:
    connection = Reading()
    connection.unread = 300_000
    with SlowReader() as reader:
        connection.file, before = reader.writer, reader.unread()
        connection.watch_reader()
        reader.read(200_000)
        wait_for(lambda: before - reader.unread() > 75 * 1024, "what was read to be acknowledged")
        for is_kept in (True, False):  # nothing more is read
            connection.looks.pop()()
            assert connection.is_open == is_kept


def test_only_the_uvicorn_whose_private_parts_are_known_is_allowed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (uvicorn,) = [
        requirement.specifier
        for requirement in map(Requirement, project["dependencies"])
        if requirement.name == "uvicorn"
    ]
    installed = Version(version("uvicorn"))
    assert installed in uvicorn
    assert f"{installed.major}.{installed.minor + 1}.0" not in uvicorn
