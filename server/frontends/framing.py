"""Frames over a stream: how the bytes between two processes are cut into messages.

A frame is its length, kind and request number (HEAD), then the content. Knows nothing of what that
says. Pure, but for `receive_frame`, which blocks.
"""

from __future__ import annotations

import enum
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

HEAD = struct.Struct("<IBI")
# 2,048 inputs of 8,192 tokens, or as many vectors of 8,192 dimensions, take 64 MiB.
MAX_CONTENT_BYTES = 256 * 1024 * 1024


class Kind(enum.IntEnum):
    """What a frame is for."""

    ASK = 1  # wants an answer with the same number
    ANSWER = 2
    FAILURE = 3  # in place of an answer
    CANCEL = 4  # the answer is not wanted any more; says why, if that is known
    TELL = 5  # wants no answer


class BadFrame(Exception):
    """What came is no frame, or no message; the channel is of no use any more."""


class Frame(NamedTuple):
    """One frame as it came."""

    kind: Kind
    request: int
    content: bytes


def head_of(kind: Kind, request: int, content: bytes) -> bytes:
    """What is written in front of a frame's content."""
    return HEAD.pack(len(content), kind, request)


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
