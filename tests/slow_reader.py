"""A connection whose one end reads only what it is told to, so that the kernel keeps the rest."""

from __future__ import annotations

import socket
from typing import Self

from server.program.send_queue import unacknowledged_bytes

WRITTEN_BYTES = 1_000_000


class SlowReader:
    """Both ends, closed with the context; much was written and nothing was read."""

    def __init__(self) -> None:
        self._reader = socket.socket()
        self._reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._reader.connect(listener.getsockname())
            self.writer, _ = listener.accept()
        self.writer.setblocking(False)
        self.num_sent = self.writer.send(bytes(WRITTEN_BYTES))

    def unread(self) -> int:
        """What the writer's kernel tells."""
        return unacknowledged_bytes(self.writer)

    def read(self, num_bytes: int) -> None:
        """Read so many bytes."""
        while num_bytes:
            num_bytes -= len(self._reader.recv(num_bytes))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self.writer.close()
