"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from fastapi import APIRouter, Request

from server.access.keys import Scope
from server.api.answer_shapes import MODEL, MODELS
from server.api.openapi import OF_KEYS, OF_MODELS, answers
from server.api.record import RequestRecord
from server.api.schemas import model_object
from server.api.services import services_of

MODEL_ID = {
    "name": "model_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
}  # as OpenAPI describes it

router = APIRouter()


@router.get(
    "/v1/models",
    operation_id="listModels",
    response_model=None,
    responses=answers({"application/json": MODELS}, *OF_KEYS, limited=True),
)
@router.get("/v1/models/", include_in_schema=False, response_model=None)
async def list_models(request: Request) -> dict[str, Any]:
    """Every served model that the key may use."""
    key = RequestRecord.of(request.scope).require_key(Scope.MODELS)
    cards = services_of(request).models.registry.cards
    allowed = [card for card in cards if key.may_use(card.name, card.aliases)]
    return {"object": "list", "data": [model_object(card) for card in allowed]}


@router.get(
    "/v1/models/{model_id:path}",
    operation_id="retrieveModel",
    response_model=None,
    responses=answers({"application/json": MODEL}, *OF_MODELS, limited=True),
    openapi_extra={"parameters": [MODEL_ID]},
)
async def retrieve_model(request: Request) -> dict[str, Any]:
    """One model by its name or an alias; names may contain slashes."""
    key = RequestRecord.of(request.scope).require_key(Scope.MODELS)
    card = services_of(request).models.registry.resolve(unquote(request.path_params["model_id"]))
    key.check_model(card.name, card.aliases)
    return model_object(card)
