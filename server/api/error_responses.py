"""Every failure as one JSON shape: {"error": {message, type, param, code}}."""

from __future__ import annotations

import itertools

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from server.access.access import Access
from server.api.client_words import answered_path
from server.api.record import RequestRecord
from server.api.services import services_of
from server.errors import ApiError, InvalidRequest, MethodNotAllowed, UrlNotFound


def right_path(path: str) -> str | None:
    """The path that was meant by one with a slash or /v1 too many or too few."""
    parts = [part for part in path.split("/") if part]
    parts = list(itertools.dropwhile("v1".__eq__, parts))
    if parts == ["embeddings"] or parts[:1] == ["models"]:
        return "/".join(("/v1", *parts))
    return None


def error_response(error: ApiError, headers: Headers, access: Access) -> JSONResponse:
    """The answer for an error of ours, which repeats no key that the request holds.

    Args:
        headers: of the request.
    """
    authorization = headers.get("authorization")
    body = error.body()
    told = body["error"]
    for name in ("message", "param"):  # the others are the server's own words
        if (words := told[name]) is not None:
            told[name] = access.conceal(words, authorization)
    return JSONResponse(body, status_code=error.status, headers=error.headers)


async def _on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    RequestRecord.of(request.scope).error = error
    return error_response(error, request.headers, services_of(request).access)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own refusals: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        path = request.scope["path"]
        shown = _shown_path(request)
        right = right_path(path) if shown == path else None
        unknown = UrlNotFound(request.method, shown, right_path=right)
        return await _on_api_error(request, unknown)
    if error.status_code == 405:
        methods = (error.headers or {}).get("Allow", "").split(", ")
        allow = ", ".join(sorted(methods))  # Starlette has them as a set
        refused = MethodNotAllowed(request.method, _shown_path(request), allow)
        return await _on_api_error(request, refused)
    return await _on_api_error(request, InvalidRequest(str(error.detail)))


def _shown_path(request: Request) -> str:
    authorization = request.headers.get("authorization")
    return answered_path(request.scope["path"], services_of(request).access, authorization)


def install(app: FastAPI) -> None:
    """Answer all errors that reach the application in the one shape."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
