"""What surrounds every request: its id, its time, its log line, and the last safety net.

Plain ASGI, since Starlette's BaseHTTPMiddleware costs a task a request and hides disconnects.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.access import Access
from server.api.error_responses import error_response
from server.api.request_record import RequestRecord
from server.errors import ApiError, Draining
from server.logs import ACCESS_LOGGER, request_id
from server.metrics import EMBEDDINGS_ROUTE, OTHER_ROUTE, ROUTES, STAGES, Metrics, refusal_reason

log = logging.getLogger(__name__)
access_log = logging.getLogger(ACCESS_LOGGER)

# Supervisors ask these every few seconds; only a refusal is worth a line.
PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})
LOGGED_PATH_BYTES = 200
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left; only in the log


class RequestContext:
    """ASGI middleware: `x-request-id`, `openai-processing-ms`, the log line and the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access: Access) -> None:
        self._app = app
        self._metrics = metrics
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(request_id(headers.get("x-request-id")))
        self._identify(record, headers.get("authorization"))
        record.put_into(scope)
        status = CLIENT_CLOSED_REQUEST

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.request_id
                headers["openai-processing-ms"] = str(round(_elapsed_s(record) * 1000.0))
                if record.limits is not None:
                    limits = await record.limits.headers()
                    headers.raw.extend((k.encode(), v.encode()) for k, v in limits.items())
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # uvicorn cuts what is left at the end of a drain
            if status != CLIENT_CLOSED_REQUEST:
                raise
            record.error = Draining()
            await error_response(record.error)(scope, receive, send_with_headers)
        except Exception:
            log.exception("request %s failed", record.request_id)
            if status != CLIENT_CLOSED_REQUEST:  # the answer has begun; only cutting it is left
                raise
            record.error = ApiError("The server failed unexpectedly; trying again is safe.")
            await error_response(record.error)(scope, receive, send_with_headers)
        finally:
            # uvloop writes to the socket when the loop's turn ends: what the client need not wait
            # for has its own turn after it.
            asyncio.get_running_loop().call_soon(
                self._finish, scope, status, record, _elapsed_s(record)
            )

    def _identify(self, record: RequestRecord, authorization: str | None) -> None:
        """Find whose request it is, and the limits that every answer tells, also a refusal."""
        try:
            record.caller = self._access.find_key(authorization)
            record.limits = self._access.limits_of(record.caller)
        except ApiError as error:
            record.caller = error

    def _finish(self, scope: Scope, status: int, record: RequestRecord, seconds: float) -> None:
        self._count(scope, status, record, seconds)
        _log(scope, status, record, seconds)

    def _count(self, scope: Scope, status: int, record: RequestRecord, seconds: float) -> None:
        metrics = self._metrics
        route: str = getattr(scope.get("route"), "path", None) or scope["path"]
        route = route.removesuffix("/")
        route = route if route in ROUTES else OTHER_ROUTE
        metrics.requests.labels(route, str(status), record.model).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        if record.error is not None:
            metrics.refusals.labels(refusal_reason(record.error)).inc()
        elif route == EMBEDDINGS_ROUTE and status == 200:
            metrics.inputs.labels(record.model).inc(record.num_inputs)
            metrics.input_tokens.labels(record.model).inc(record.num_tokens)
            for stage, stage_s in record.stages_s.items():
                metrics.stage_seconds.labels(stage, record.model).observe(stage_s)


def _log(scope: Scope, status: int, record: RequestRecord, seconds: float) -> None:
    """One line: whose request, what was asked, how it ended and where the time went."""
    level = logging.DEBUG if scope["path"] in PROBES and status == 200 else logging.INFO
    if not access_log.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "method": scope["method"],
        "path": _printable_path(scope),
        "status": status,
    }
    if record.error is not None:
        fields["error"] = refusal_reason(record.error)
    if record.model:
        fields["model"] = record.model
    if record.num_inputs:
        fields |= {"inputs": record.num_inputs, "tokens": record.num_tokens}
    stages_s = {"total": seconds, **{s: record.stages_s[s] for s in STAGES if s in record.stages_s}}
    fields["ms"] = {name: round(stage_s * 1000.0, 2) for name, stage_s in stages_s.items()}
    access_log.log(level, "request", extra={"fields": fields})


def _printable_path(scope: Scope) -> str:
    """The path as it was sent, percent-encoded: decoded, it could hold a log line of its own."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return repr(raw[:LOGGED_PATH_BYTES])[2:-1]


def _elapsed_s(record: RequestRecord) -> float:
    return time.perf_counter() - record.started_s
