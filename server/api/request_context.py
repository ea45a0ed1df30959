"""What surrounds every request: its id, its time, its log line, and the last safety net.

Plain ASGI, since Starlette's BaseHTTPMiddleware costs a task a request and hides disconnects.
"""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.error_responses import error_response
from server.errors import ApiError, Draining
from server.logs import ACCESS_LOGGER, request_id

log = logging.getLogger(__name__)
access_log = logging.getLogger(ACCESS_LOGGER)

# Supervisors ask these every few seconds; only a refusal is worth a line.
PROBES = frozenset({"/livez", "/readyz", "/health"})
LOGGED_PATH_BYTES = 200
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left; only in the log


class RequestContext:
    """ASGI middleware that adds `x-request-id` and `openai-processing-ms` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        own_id = request_id(Headers(scope=scope).get("x-request-id"))
        status = CLIENT_CLOSED_REQUEST

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = own_id
                headers["openai-processing-ms"] = str(round(_elapsed_ms(started)))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # uvicorn cuts what is left at the end of a drain
            if status != CLIENT_CLOSED_REQUEST:
                raise
            await error_response(Draining())(scope, receive, send_with_headers)
        except Exception:
            log.exception("request %s failed", own_id)
            if status != CLIENT_CLOSED_REQUEST:  # the answer has begun; only cutting it is left
                raise
            failure = ApiError("The server failed unexpectedly; trying again is safe.")
            await error_response(failure)(scope, receive, send_with_headers)
        finally:
            probed = scope["path"] in PROBES and status == 200
            access_log.log(
                logging.DEBUG if probed else logging.INFO,
                "%s %s %s %d %.1f ms",
                own_id, scope["method"], _printable_path(scope), status, _elapsed_ms(started),
            )  # fmt: skip


def _printable_path(scope: Scope) -> str:
    """The path as it was sent, percent-encoded: decoded, it could hold a log line of its own."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return repr(raw[:LOGGED_PATH_BYTES])[2:-1]


def _elapsed_ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
