"""GET /livez, /readyz and /health: for supervisors and load balancers, without a key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from server.api.deps import ServicesDep
from server.engine.served_models import Phase

PROBE_METHODS = ["GET", "HEAD"]  # some balancers probe with HEAD

router = APIRouter()


@router.api_route("/livez", methods=PROBE_METHODS)
async def alive() -> dict[str, str]:
    """The process answers: 200 also while loading and draining."""
    return {"status": "alive"}


@router.api_route("/readyz", methods=PROBE_METHODS)
async def ready(services: ServicesDep) -> dict[str, str]:
    """200 if the server takes work, 503 while it loads or drains."""
    services.models.check_ready()
    return {"status": "ready"}


@router.api_route("/health", methods=PROBE_METHODS)
async def health(services: ServicesDep, response: Response) -> dict[str, Any]:
    """The phase and the models, for people; the status is that of /readyz."""
    phase = services.models.phase
    response.status_code = 200 if phase is Phase.READY else 503
    return {
        "status": phase.value,
        "models": [card.name for card in services.models.registry.cards],
    }
