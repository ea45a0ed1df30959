"""An answer's head, which is written together with the first part of its body.

Each write is a system call that wakes the client: two of them cost a third of all that a short query
costs the event loop's thread. Each response here gives its head just before that part.
"""

from __future__ import annotations

from server.http.lingering import Lingering


class JoinedHead(Lingering):
    """The part of a connection's protocol that keeps a head back."""

    awaits_head = False  # of its answer; set with each request that begins
    _head = b""  # that is not written yet

    def write(self, data: bytes) -> None:
        """A part of an answer."""
        # Before its head only the interim answer 100 is written, for which the client waits.
        if self.awaits_head and self._answering.response_started:
            self.awaits_head, self._head = False, data
        elif self._head:
            parts, self._head = (self._head, data), b""
            self.transport.writelines(parts)
        else:
            self.transport.write(data)

    def on_response_complete(self) -> None:
        """An answer without a body is its head."""
        self._write_head()
        super().on_response_complete()  # type: ignore[misc]  # all protocols have it

    def end(self, *, lingers: bool) -> None:
        """The connection ends behind what was written."""
        self._write_head()
        super().end(lingers=lingers)

    def _write_head(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self.transport.write(head)
