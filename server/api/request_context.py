"""What surrounds every request: its id, its time, its log line, and the last safety net.

Plain ASGI, since Starlette's BaseHTTPMiddleware costs a task a request and hides disconnects.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.access import Access
from server.api.client_words import request_id
from server.api.error_responses import error_response
from server.api.hosts import HostRule
from server.api.plain_route import PlainRoutes
from server.api.record import RequestRecord
from server.errors import ApiError, Draining
from server.metrics import Metrics
from server.program.rust_panics import is_panic

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left; only in the log


class RequestContext:
    """ASGI middleware: `x-request-id`, `openai-processing-ms`, the log line and the metrics."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        access: Access,
        hosts: HostRule,
        plain_routes: PlainRoutes,
    ) -> None:
        self._app = app
        self._plain_routes = plain_routes
        self._metrics = metrics
        self._access = access
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord.begin(scope, request_id(headers, self._access))
        self._identify(record, headers.get("authorization"))
        status = CLIENT_CLOSED_REQUEST

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = {
                    "x-request-id": record.request_id,
                    "openai-processing-ms": str(round(record.elapsed_s * 1000.0)),
                }
                if record.limits is not None:
                    added |= await record.limits.headers()
                raw = [(name.encode(), value.encode()) for name, value in added.items()]
                message["headers"] = [*message["headers"], *raw]
            await send(message)

        # As it came: decoded, it would pass a proxy's rule for another path.
        scope["path"] = scope["raw_path"].decode("latin-1")
        try:
            self._hosts.check(scope, headers, asks_for_keys=self._access.asks_for_keys)
            await self._answer(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # uvicorn cuts what is left at the end of a drain
            if status != CLIENT_CLOSED_REQUEST:
                log.warning("request %s: its answer was not read to its end", record.request_id)
                return
            record.error = Draining()
            answer = error_response(record.error, headers, self._access)
            await answer(scope, receive, send_with_headers)
        except BaseException as error:
            told = _told(error, record.request_id)
            if status != CLIENT_CLOSED_REQUEST:  # the answer has begun; only cutting it is left
                raise
            record.error = told
            answer = error_response(told, headers, self._access)
            told.__traceback__ = None  # which leads to the record: no circle for the collector
            await answer(scope, receive, send_with_headers)
        finally:
            record.end()
            # What the client need not wait for has a turn of its own, behind the answer's.
            asyncio.get_running_loop().call_soon(record.report, scope, status, self._metrics)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give a plain route its request; all others go through the application's routing."""
        endpoint = self._plain_routes.get((scope["method"], scope["path"]))
        if endpoint is None:
            await self._app(scope, receive, send)
        else:
            response = await endpoint(Request(scope, receive))
            await response(scope, receive, send)

    def _identify(self, record: RequestRecord, authorization: str | None) -> None:
        """Find whose request it is, and the limits that every answer tells, also a refusal."""
        try:
            record.caller = self._access.find_key(authorization)
            record.limits = self._access.limits_of(record.caller)
        except ApiError as error:
            record.caller = error


def _told(error: BaseException, request_id: str) -> ApiError:
    """What the client is told; all but the host's refusal is a failure of ours."""
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, Exception) and not is_panic(error):
        raise error
    log.error("request %s failed", request_id, exc_info=error)
    return ApiError("The server failed unexpectedly; trying again is safe.")
