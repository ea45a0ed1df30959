"""GET /livez, /readyz and /health: for supervisors and load balancers, without a key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from server.api.answer_shapes import ALIVE, HEALTH, READY
from server.api.openapi import answers
from server.api.services import services_of
from server.errors import ModelFailing, Unavailable, api_errors

PROBE_METHODS = ["GET", "HEAD"]  # some balancers probe with HEAD

router = APIRouter()


@router.api_route(
    "/livez",
    methods=PROBE_METHODS,
    operation_id="alive",
    response_model=None,
    responses=answers({"application/json": ALIVE}),
)
async def alive() -> dict[str, str]:
    """The process answers: 200 also while loading and draining."""
    return {"status": "alive"}


@router.api_route(
    "/readyz",
    methods=PROBE_METHODS,
    operation_id="ready",
    response_model=None,
    responses=answers({"application/json": READY}, *api_errors(Unavailable)),
)
async def ready(request: Request) -> dict[str, Any]:
    """200 if the server takes work, 503 while it loads or drains; tells what else is away."""
    services = services_of(request)
    services.models.check_ready()
    troubles = services.models.troubles() | services.access.troubles()
    return {"status": "ready", **({"troubles": troubles} if troubles else {})}


@router.api_route(
    "/health",
    methods=PROBE_METHODS,
    operation_id="health",
    response_model=None,
    responses=answers({"application/json": HEALTH}, unavailable=HEALTH),
)
async def health(request: Request, response: Response) -> dict[str, Any]:
    """The phase and the models, for people; the status is that of /readyz."""
    services = services_of(request)
    status = services.models.phase.value
    try:
        services.models.check_ready()
    except Unavailable as unavailable:
        response.status_code = unavailable.status
        response.headers.update(unavailable.headers)
        if isinstance(unavailable, ModelFailing):
            status = "failing"
    return {
        "status": status,
        "models": [
            {
                "name": model.card.name,
                "encoder": model.encoder_card.name,
                "loaded": model.state.loaded,
                "file_bytes": model.card.file_bytes,
                "resident_bytes": model.state.resident_bytes,
            }
            for model in services.models.models
        ],
    }
