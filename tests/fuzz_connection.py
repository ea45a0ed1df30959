"""A connection in memory, at which bytes are thrown in any pieces; see `fuzz_targets`."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NamedTuple
from unittest import mock

import uvicorn

from server.http.connection_limit import FewConnections
from server.http.patient_connection import LimitedState
from server.http.protocol import BoundedProtocol
from server.http.waiting_room import WaitingRoom


class Wire(asyncio.Transport):
    """A connection that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = bytearray()
        self.protocol: Any = None
        self.is_over = False

    def write(self, content: Any) -> None:
        if not self.is_over:
            self.written += content

    def close(self) -> None:
        self.is_over = True

    abort = write_eof = close  # nothing that a client reads comes behind either

    def is_closing(self) -> bool:
        return self.is_over

    def get_write_buffer_size(self) -> int:
        return 0

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        """All comes at once here."""

    resume_reading = pause_reading


class _Failures(logging.Handler):
    """What uvicorn says that went wrong, or the event loop."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[object] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.exc_info[1] if record.exc_info else record.getMessage())


class _Served(NamedTuple):
    """What came of one connection."""

    requests: list[tuple[str, str, bytes]]  # method, path, body
    statuses: list[int]
    is_over: bool


async def _serve(pieces: list[bytes], turns: int = 0) -> _Served:
    requests: list[tuple[str, str, bytes]] = []
    begun: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["method"])
        body, more = b"", not scope["path"].startswith("/early")
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        requests.append((scope["method"], scope["path"], body))
        status = 404 if scope["method"] == "CONNECT" else 200  # a tunnel is nowhere
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"cd"})

    _FAILURES.found.clear()
    CONFIG.loaded_app = app
    state, wire = LimitedState(WaitingRoom(10**9)), Wire()
    state.connection_limit = FewConnections(state.all_connections, 1)
    wire.protocol = BoundedProtocol(CONFIG, state, {})
    wire.protocol.connection_made(wire)
    for piece in pieces:
        if wire.is_over:
            break
        wire.protocol.data_received(piece)
        for _ in range(turns):
            await asyncio.sleep(0)
    for _ in range(40):
        await asyncio.sleep(0)
    is_over = wire.is_over
    wire.close()
    wire.protocol.connection_lost(None)
    for _ in range(4):
        await asyncio.sleep(0)
    for failure in _FAILURES.found:
        raise failure if isinstance(failure, Exception) else AssertionError(failure)
    assert not state.tasks, "a request that nobody waits for goes on"
    assert not state.connections
    return _Served(requests, _statuses(bytes(wire.written), begun), is_over)


def _statuses(written: bytes, methods: list[str]) -> list[int]:
    """The statuses of these answers, of which only the last may be cut."""
    statuses, left = [], list(methods)
    while written:
        head, end, written = written.partition(b"\r\n\r\n")
        assert end, head
        version, status, *_ = head.split(b"\r\n")[0].split(b" ")
        assert version == b"HTTP/1.1", head
        statuses.append(int(status))
        if statuses[-1] < 200:
            continue
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        method = left.pop(0) if left and statuses[-1] != 400 else ""
        if method != "HEAD":
            written, body = written[length:], written[:length]
            assert statuses[-1] == 400 or b"abcd".startswith(body), body
    return statuses


_LOOP = asyncio.new_event_loop()
CONFIG = uvicorn.Config(
    asyncio.sleep, http=BoundedProtocol, ws="none", log_config=None, access_log=False
)
CONFIG.load()  # each connection puts its own application there
_FAILURES = _Failures()
_LOOP.set_exception_handler(lambda _, context: _FAILURES.found.append(context))
PLAIN = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
OFFER = b"POST /b HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}"


def try_connection(content: bytes) -> None:
    """However the bytes of a connection come, the same requests are answered by whole answers.

    The first byte says where the rest is split, and how much is done before the next piece.
    """
    first, content = content[0] if content else 0, content[1:]
    step, turns = 1 + first % 64, first // 64
    pieces = [content[at : at + step] for at in range(0, len(content), step)]
    logger = logging.getLogger("uvicorn.error")
    with mock.patch.multiple(logger, handlers=[_FAILURES], propagate=False):
        split = _LOOP.run_until_complete(_serve(pieces, turns))
        whole = _LOOP.run_until_complete(_serve([content]))
    if b"pgrade" in content.lower():  # behind an unanswered request it is refused
        return
    # What is no HTTP ends the connection, also for a request before it that is not answered yet.
    assert whole.requests == split.requests[: len(whole.requests)], (whole, split)
    assert whole.is_over == split.is_over, (whole, split)
