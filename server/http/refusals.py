"""What a connection's protocol refuses itself, in the shape of every error, before it hangs up."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Protocol

import orjson

from server.errors import ApiError, InvalidRequest, Overloaded
from server.http.patient_connection import PatientConnection

MAX_HEADERS = 256


class Answer(Protocol):
    """What both protocols know of a request."""

    disconnected: bool
    message_event: asyncio.Event
    response_started: bool
    response_complete: bool


def too_many_headers() -> ApiError:
    """For a request with more than MAX_HEADERS."""
    return InvalidRequest(f"The request has more than {MAX_HEADERS} headers.")


def no_room() -> ApiError:
    """For a head or a waiting request for which there is no memory."""
    return Overloaded("too many heads are not whole yet", retry_after_s=1)


def refuse(connection: PatientConnection, answering: Answer | None, error: ApiError) -> None:
    """Tell what is wrong, and hang up; in the midst of an answer there is no place to tell it."""
    if answering is not None and not answering.response_complete:
        if answering.response_started:
            connection.end(lingers=False)
            return
        answering.disconnected = True  # nothing may stand behind the refusal
        answering.message_event.set()
    body = orjson.dumps(error.body())
    headers = "".join(f"{name}: {value}\r\n" for name, value in error.headers.items())
    connection.write(
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n{headers}\r\n".encode()
        + body
    )
    connection.end(lingers=True)
