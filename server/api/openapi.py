"""What /openapi.json says: every status, header and shape of an answer, as the code declares it.

Errors are told by their classes in server/errors.py. Knows nothing of how a request is answered.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.api.answer_shapes import Schema, exactly
from server.api.fingerprint_pin import FINGERPRINT
from server.errors import (
    MAX_RETRY_AFTER_S,
    ApiError,
    AuthenticationFailed,
    Draining,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotAllowed,
    ModelNotFound,
    PermissionDenied,
    RateLimitExceeded,
    ScopeMissing,
    StorageUnavailable,
    Unavailable,
    UnsupportedContentEncoding,
    UntrustedHost,
    UrlNotFound,
    api_errors,
)

_SCHEME = "bearer"
_RESET = {"type": "string", "description": "Time until all are there again.", "pattern": r"^\d+s$"}
_COUNT = {"type": "integer", "minimum": 0}
_EVERY_ANSWER: Schema = {
    "x-request-id": {"description": "The caller's, if it is sane; else a new one."},
    "openai-processing-ms": {"description": "Milliseconds until the answer.", "schema": _COUNT},
}
_OF_LIMITED_KEYS: Schema = {
    f"x-ratelimit-{what}-{unit}": {"description": "Of keys with limits a minute.", "schema": schema}
    for what, schema in (("limit", _COUNT), ("remaining", _COUNT), ("reset", _RESET))
    for unit in ("requests", "tokens")
}
_FINGERPRINT: Schema = {
    FINGERPRINT: {
        "description": "Of what decided these vectors.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
    }
}
_RETRY_AFTER = {"type": "integer", "minimum": 1, "maximum": MAX_RETRY_AFTER_S}
_HEADERS_OF_ERRORS: Mapping[type[ApiError], Schema] = {
    AuthenticationFailed: {"WWW-Authenticate": {"const": "Bearer"}},
    UnsupportedContentEncoding: {"Accept-Encoding": {"type": "string"}},
    RateLimitExceeded: {"Retry-After": _RETRY_AFTER},
    Unavailable: {"Retry-After": _RETRY_AFTER},
}
# Which errors each kind of route may answer with.
OF_EVERY_ROUTE: tuple[type[ApiError], ...] = (ApiError, InvalidRequest, UntrustedHost, Draining)
OF_KEYS = (*api_errors(AuthenticationFailed), PermissionDenied, ScopeMissing, StorageUnavailable)
OF_MODELS = (*OF_KEYS, ModelNotAllowed, ModelNotFound)
OF_WORK = tuple(one for one in api_errors() if one not in (UrlNotFound, MethodNotAllowed))


def answers(
    content: Mapping[str, Schema],
    *errors: type[ApiError],
    limited: bool = False,
    fingerprinted: bool = False,
    unavailable: Schema | None = None,
) -> dict[int | str, Any]:
    """Every status that a route answers with.

    Args:
        content: the schema of a 200, by its media type.
        errors: those it may answer with, beside those of every route.
        limited: it tells where a key with limits stands.
        fingerprinted: a 200 tells the fingerprint of its vectors.
        unavailable: a 503 may also be of this schema.
    """
    more = _OF_LIMITED_KEYS if limited else {}
    found: dict[int | str, Any] = {
        200: {
            "description": "OK",
            "headers": _headers(more | (_FINGERPRINT if fingerprinted else {})),
            "content": {kind: {"schema": schema} for kind, schema in content.items()},
        }
    }
    by_status: defaultdict[int, list[type[ApiError]]] = defaultdict(list)
    for error in dict.fromkeys((*OF_EVERY_ROUTE, *errors)):
        by_status[error.status].append(error)
    for status, kinds in sorted(by_status.items()):
        found[status] = _refusal(kinds, more)
    if unavailable is not None:
        refusal = found[Unavailable.status]["content"]["application/json"]
        refusal["schema"] = {"anyOf": [refusal["schema"], unavailable]}
    return found


def describe(app: FastAPI, *, asks_for_keys: bool) -> Schema:
    """The application's description.

    Args:
        asks_for_keys: whether a request without a key is refused.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate Operation ID")  # told apart below
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components: Schema = {"headers": {}}
    for operations in found["paths"].values():
        for method, operation in operations.items():
            if method == "head":  # FastAPI takes it for the GET beside it
                operation["operationId"] += "Head"
                for answer in operation["responses"].values():
                    answer.pop("content", None)
            for answer in operation["responses"].values():
                components["headers"] |= answer["headers"]
                answer["headers"] = {
                    name: {"$ref": f"#/components/headers/{name}"} for name in answer["headers"]
                }
            if asks_for_keys and "401" in operation["responses"]:
                is_optional = operation["operationId"] == "metrics"
                operation["security"] = [*([{}] if is_optional else []), {_SCHEME: []}]
    if asks_for_keys:
        components["securitySchemes"] = {_SCHEME: {"type": "http", "scheme": "bearer"}}
    return {**found, "components": components}


def _refusal(kinds: list[type[ApiError]], more: Schema) -> Schema:
    required = {
        name: {"description": "", "required": True, "schema": schema}
        for kind, headers in _HEADERS_OF_ERRORS.items()
        if any(issubclass(error, kind) for error in kinds)
        for name, schema in headers.items()
    }
    codes = sorted({error.code or "" for error in kinds})
    error: Schema = {
        "message": {"type": "string"},
        "type": {"const": kinds[0].type},
        "param": {"type": ["string", "null"]},
        "code": {"enum": [code or None for code in codes]},
    }
    said = [_first_line(error) for error in kinds if error is not ApiError]
    return {
        "description": "; or: ".join(said[:2]) or "The server failed; trying again is safe",
        "headers": _headers(more | required),
        "content": {"application/json": {"schema": exactly(error=exactly(**error))}},
    }


def _headers(more: Schema) -> Schema:
    return {
        name: {"schema": {"type": "string"}, **told}
        for name, told in (_EVERY_ANSWER | more).items()
    }


def _first_line(error: type[ApiError]) -> str:
    return (error.__doc__ or "").partition("\n")[0].rstrip(".")
