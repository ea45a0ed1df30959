"""Routes that FastAPI only describes: its own way to a function costs 0.1 ms a request."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from server.api.fingerprint_pin import PARAMETER
from server.api.schemas import RequestBody


class PlainRoute(APIRoute):
    """A route whose function takes the request and gives the response itself.

    FastAPI's own handler would solve dependencies and look for a body; here it only describes the
    route for /openapi.json.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function as it is."""
        return self.endpoint


def described(body: type[RequestBody]) -> dict[str, Any]:
    """What /openapi.json says of a route that reads such a body and asks one model."""
    return {
        "parameters": [PARAMETER],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body.model_json_schema()}},
        },
    }
