"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from server.api.deps import require_key, services_of
from server.api.schemas import model_object

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """Every served model."""
    require_key(request)
    cards = services_of(request).models.registry.cards
    return {"object": "list", "data": [model_object(card) for card in cards]}


@router.get("/v1/models/{model_id:path}")
async def retrieve_model(model_id: str, request: Request) -> dict[str, Any]:
    """One model by its name or an alias; names may contain slashes."""
    require_key(request)
    return model_object(services_of(request).models.registry.resolve(model_id))
