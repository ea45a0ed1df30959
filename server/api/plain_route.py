"""Routes that FastAPI only describes: its own way to a function costs 0.1 ms a request.

A request that names such a route's very method and path is given to the function without FastAPI's
routing, either: see `RequestContext`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from server.api.fingerprint_pin import PARAMETER
from server.api.schemas import RequestBody

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
PlainRoutes = Mapping[tuple[str, str], Endpoint]  # by method and path


class PlainRoute(APIRoute):
    """A route whose function takes the request and gives the response itself.

    FastAPI's own handler would solve dependencies and look for a body; here it only describes the
    route for /openapi.json.
    """

    def get_route_handler(self) -> Endpoint:
        """The function as it is."""
        return self.endpoint


def plain_routes(routers: Iterable[APIRouter]) -> PlainRoutes:
    """The functions of all plain routes whose path is always the same."""
    return {
        (method, route.path): route.endpoint
        for router in routers
        for route in router.routes
        if isinstance(route, PlainRoute) and not route.param_convertors
        for method in route.methods or ()
    }


def described(body: type[RequestBody]) -> dict[str, Any]:
    """What /openapi.json says of a route that reads such a body and asks one model."""
    return {
        "parameters": [PARAMETER],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body.model_json_schema()}},
        },
    }
