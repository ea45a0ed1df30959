"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from server.api.deps import RequireKey, ServicesDep
from server.api.schemas import model_object

router = APIRouter(dependencies=[RequireKey])


@router.get("/v1/models")
async def list_models(services: ServicesDep) -> dict[str, Any]:
    """Every served model."""
    cards = services.models.registry.cards
    return {"object": "list", "data": [model_object(card) for card in cards]}


@router.get("/v1/models/{model_id:path}")
async def retrieve_model(model_id: str, services: ServicesDep) -> dict[str, Any]:
    """One model by its name or an alias; names may contain slashes."""
    return model_object(services.models.registry.resolve(model_id))
