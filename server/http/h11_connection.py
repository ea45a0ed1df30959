"""A connection on which an upgrade was offered: h11 reads it, which ignores the offer.

Imported when it is needed: h11 takes half a megabyte.
"""

from __future__ import annotations

from typing import cast
from urllib.parse import unquote

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import InvalidRequest
from server.http.absolute_target import take_host_of_target
from server.http.patient_connection import LimitedState, PatientConnection
from server.http.refusals import MAX_HEADERS, no_room, refuse, too_many_headers
from server.http.waiting_room import head_bytes


class UpgradeIgnoringProtocol(PatientConnection, H11Protocol):
    """A connection whose client has offered an upgrade once."""

    server_state: LimitedState

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, but a whole head ends the wait for it, not its first byte."""
        if self._is_ending:
            self.take_notice_of_body(len(data))
            return
        if self.conn.their_state is h11.SEND_BODY:
            self.take_notice_of_body(len(data))
        self.conn.receive_data(data)
        self.handle_events()
        if self.is_closing():  # it has been refused
            return
        headers = self.headers or ()
        if len(headers) > MAX_HEADERS:
            refuse(self, self.cycle, too_many_headers())
        elif not self.hold(len(self.conn.trailing_data[0]) + head_bytes(headers)):
            refuse(self, self.cycle, no_room())

    def handle_events(self) -> None:
        """As uvicorn's; an answer's connection is closed in its own way."""
        super().handle_events()
        if self.cycle is None:
            return
        self.cycle.transport = self
        scope = self.cycle.scope  # which nobody has read yet if the request is new
        if not scope["raw_path"].startswith(b"/"):
            headers = cast("list[tuple[bytes, bytes]]", scope["headers"])
            path = take_host_of_target(scope["raw_path"], headers, scope["http_version"])
            scope["raw_path"], scope["path"] = path, unquote(path.decode("ascii"))

    def expects_more(self) -> bool:
        """Whether a body's end has not come."""
        return self.conn.their_state is h11.SEND_BODY

    def forget(self) -> None:
        """What was not parsed yet."""
        self.conn = h11.Connection(h11.SERVER)
        self.hold(0)

    def _should_upgrade(self) -> bool:
        """Whatever is offered, and without a warning each time."""
        return False

    def send_400_response(self, msg: str) -> None:
        """As the other protocol."""
        refuse(self, self.cycle, InvalidRequest(msg))
