"""GET /livez, /readyz and /health: for supervisors and load balancers, without a key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from server.api.deps import ServicesDep
from server.engine.served_models import Phase

router = APIRouter()


@router.get("/livez")
async def alive() -> dict[str, str]:
    """The process answers: 200 also while loading and draining."""
    return {"status": "alive"}


@router.get("/readyz")
async def ready(services: ServicesDep) -> dict[str, str]:
    """200 if the server takes work, 503 while it loads or drains."""
    services.models.check_ready()
    return {"status": "ready"}


@router.get("/health")
async def health(services: ServicesDep, response: Response) -> dict[str, Any]:
    """The phase and the models, for people; the status is that of /readyz."""
    phase = services.models.phase
    response.status_code = 200 if phase is Phase.READY else 503
    return {
        "status": phase.value,
        "models": [card.name for card in services.models.registry.cards],
    }
