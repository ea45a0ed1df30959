"""The channel between the engine process and a front end: frames over a stream, many at a time.

A frame is its length, kind and request number (HEAD), then the content. Either side asks, and
answers what it is asked, in any order; some frames tell something and want no answer. Lives in the
event loop's thread; knows nothing of models, HTTP or keys.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import logging
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple, cast

from server.errors import ApiError, Draining
from server.frontends.crossing_errors import read_error, write_error

log = logging.getLogger(__name__)

HEAD = struct.Struct("<IBI")
# 2,048 inputs of 8,192 tokens, or as many vectors of 8,192 dimensions, take 64 MiB.
MAX_CONTENT_BYTES = 256 * 1024 * 1024

Parts = Sequence[bytes | memoryview]


class Kind(enum.IntEnum):
    """What a frame is for."""

    # Answers, and what ends a question without one.
    DONE = 1
    FAILED = 2
    CANCEL = 3
    # Questions of a front end.
    EMBED = 10
    LOAD = 11
    COUNT = 12
    LOOK = 13
    SAMPLES_OF_OTHERS = 14
    # Question of the engine process.
    SAMPLES = 20
    # Told by the engine process.
    WELCOME = 30
    STATE = 31
    DRAIN = 32
    # Told by a front end.
    READY = 40
    CANNOT_START = 41


_QUESTIONS = frozenset(
    {Kind.EMBED, Kind.LOAD, Kind.COUNT, Kind.LOOK, Kind.SAMPLES_OF_OTHERS, Kind.SAMPLES}
)


class BadFrame(Exception):
    """What came is no frame, or holds what its kind cannot; the channel is of no use any more."""


class Frame(NamedTuple):
    """One frame as it came."""

    kind: Kind
    request: int
    content: bytes


def frame(kind: Kind, request: int, parts: Parts) -> Parts:
    """The pieces of a frame, to be written one after the other."""
    return (HEAD.pack(sum(map(len, parts)), kind, request), *parts)


class FrameReader:
    """Frames from a stream that is cut anywhere."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, received: bytes) -> Iterator[Frame]:
        """The frames that are whole now.

        Raises:
            BadFrame: a frame is of no known kind, or too long.
        """
        whole = received
        if self._rest:
            self._rest += received
            if not _begins_whole(self._rest):
                return
            whole = bytes(self._rest)
            self._rest.clear()
        start = 0
        while len(whole) - start >= HEAD.size:
            length, kind, request = _read_head(whole, start)
            end = start + HEAD.size + length
            if end > len(whole):
                break
            yield Frame(kind, request, whole[start + HEAD.size : end])
            start = end
        self._rest += whole[start:]


def _begins_whole(received: bytearray) -> bool:
    if len(received) < HEAD.size:
        return False
    length, _, _ = _read_head(received, 0)
    return len(received) >= HEAD.size + length


def _read_head(received: bytes | bytearray, start: int) -> tuple[int, Kind, int]:
    length, kind, request = HEAD.unpack_from(received, start)
    if length > MAX_CONTENT_BYTES:
        raise BadFrame(f"a frame of {length} bytes")
    try:
        return length, Kind(kind), request
    except ValueError:
        raise BadFrame(f"a frame of kind {kind}") from None


class Channel(asyncio.Protocol):
    """One end of the channel.

    Args:
        stream: a connected socket.
        answer: what this end gives for a question; its ApiErrors cross over as they are.
        told: gets what is told.
        lost: called once nothing comes any more.
    """

    def __init__(
        self,
        stream: socket.socket,
        answer: Callable[[Kind, bytes], Coroutine[Any, Any, Parts]],
        told: Callable[[Kind, bytes], None],
        lost: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._answer = answer
        self._told = told
        self._lost = lost
        self._reader = FrameReader()
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._transport: asyncio.Transport | None = None
        self._connected = asyncio.Event()
        self._over = False

    async def open(self) -> None:
        """Read and write from now on."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=self._stream)

    async def ask(self, kind: Kind, *parts: bytes | memoryview) -> bytes:
        """The other end's answer; who is cancelled while waiting takes the question back.

        Raises:
            ApiError: the other end's.
            Draining: the channel is over.
        """
        if self._transport is None:
            await self._connected.wait()
        if self._over:
            raise Draining
        request = next(self._numbers) & 0xFFFFFFFF
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[request] = answer
        self._write(kind, request, parts)
        try:
            return await answer
        except BaseException:
            if self._asked.pop(request, None) is not None:  # it has not been answered
                self._write(Kind.CANCEL, request, ())
            raise

    def tell(self, kind: Kind, *parts: bytes | memoryview) -> None:
        """Send what wants no answer."""
        self._write(kind, 0, parts)

    def give_up(self) -> None:
        """Take all questions back; who waits for an answer gets Draining."""
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(Draining())

    def abort(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._connected.set()

    def data_received(self, data: bytes) -> None:
        try:
            for kind, request, content in self._reader.feed(data):
                self._take(kind, request, content)
        except BadFrame as error:
            self._hang_up(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        for task in list(self._answering.values()):
            task.cancel()
        self.give_up()
        self._asked.clear()
        self._lost()

    def _take(self, kind: Kind, request: int, content: bytes) -> None:
        if kind is Kind.DONE:
            if (answer := self._asked.pop(request, None)) is not None and not answer.done():
                answer.set_result(content)
        elif kind in _QUESTIONS:
            # A task may not begin at once: it would answer before it can be taken back.
            task = asyncio.create_task(self._work(kind, request, content))
            self._answering[request] = task
        elif kind is Kind.CANCEL:
            if (task_or_none := self._answering.get(request)) is not None:
                task_or_none.cancel()
        elif kind is Kind.FAILED:
            if (answer := self._asked.pop(request, None)) is not None and not answer.done():
                answer.set_exception(read_error(content))
        else:
            self._told(kind, content)

    async def _work(self, kind: Kind, request: int, content: bytes) -> None:
        try:
            self._write(Kind.DONE, request, await self._answer(kind, content))
        except ApiError as error:
            self._write(Kind.FAILED, request, (write_error(error),))
        except BadFrame as error:
            self._hang_up(error)
        except Exception:
            log.exception("a question of the other process failed")
            failed = ApiError("The server failed unexpectedly; trying again is safe.")
            self._write(Kind.FAILED, request, (write_error(failed),))
        finally:
            del self._answering[request]

    def _write(self, kind: Kind, request: int, parts: Parts) -> None:
        if self._transport is not None and not self._over:
            self._transport.writelines(frame(kind, request, parts))

    def _hang_up(self, error: BadFrame) -> None:
        log.error("the other process sent %s", error)
        self.abort()


def receive_frame(stream: socket.socket) -> Frame | None:
    """Wait for one frame, blocking, before there is an event loop; None: the other end is gone.

    Raises:
        BadFrame: it is none.
    """
    head = _receive(stream, HEAD.size)
    if len(head) < HEAD.size:
        return None
    length, kind, request = _read_head(head, 0)
    content = _receive(stream, length)
    return Frame(kind, request, content) if len(content) == length else None


def _receive(stream: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count and (more := stream.recv(count - len(received))):
        received += more
    return bytes(received)
