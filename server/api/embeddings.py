"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from server.api.deps import RequireKey, ServicesDep, abandoned_when_client_leaves, read_body
from server.api.schemas import EmbeddingRequest, embeddings_json
from server.catalog.card import Card
from server.engine.served_models import ServedModel
from server.errors import InvalidRequest
from server.inference.inputs import TokenIdInputs
from server.inference.matryoshka import check_dimensions, truncate
from server.settings import Settings

# Rotating, cutting and writing this many vectors takes longer than the way to a thread and back.
THREAD_FROM_VECTORS = 64

router = APIRouter()


@router.post(
    "/v1/embeddings",
    dependencies=[RequireKey],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": EmbeddingRequest.model_json_schema()}},
        }
    },
)
async def create_embeddings(request: Request, services: ServicesDep) -> Response:
    """Turn texts (or token ids) into vectors."""
    asked = EmbeddingRequest.read(await read_body(request, services.settings.max_body_bytes))
    with services.models.work(asked.model) as model:
        return await answer(request, asked, model, services.settings)


async def answer(
    request: Request, asked: EmbeddingRequest, model: ServedModel, settings: Settings
) -> Response:
    """Check what depends on the model, compute, write.

    Raises:
        InvalidRequest: the model cannot do what is asked, or an input is too long.
        ClientDisconnect: the client left before its vectors were there.
    """
    card, engine = model.card, model.engine
    dimensions = check_dimensions(asked.dimensions, card)
    own_token_ids = model.own_token_ids and isinstance(asked.input, TokenIdInputs)
    prompt = choose_prompt(asked, card, own_token_ids=own_token_ids)
    cut_inputs = settings.truncate_inputs if asked.truncate is None else asked.truncate

    async with abandoned_when_client_leaves(request):
        token_ids = await engine.tokenize(
            asked.input, prompt=prompt, truncate=cut_inputs, own_token_ids=own_token_ids
        )
        vectors = await engine.embed(token_ids)

    def write() -> bytes:
        return embeddings_json(
            truncate(vectors, dimensions, model.rotation),
            model=card.name,
            num_tokens=sum(map(len, token_ids)),
            encoding_format=asked.encoding_format or "float",
        )

    body = await asyncio.to_thread(write) if len(vectors) >= THREAD_FROM_VECTORS else write()
    headers = {"x-embedding-fingerprint": card.fingerprint}
    return Response(body, media_type="application/json", headers=headers)


def choose_prompt(asked: EmbeddingRequest, card: Card, *, own_token_ids: bool) -> str:
    """The text put before each input: by `input_type`, else the card's default, else nothing.

    Raises:
        InvalidRequest: a prompt is asked for together with the model's own token ids.
    """
    purpose = asked.input_type or card.default_prompt
    prompt = card.prompts.get(purpose, "") if purpose else ""
    if not own_token_ids:
        return prompt
    if prompt and asked.input_type:
        raise InvalidRequest(
            "input_type cannot be used with token ids of the model's own vocabulary; put the "
            "prompt's ids in front yourself.",
            param="input_type",
        )
    return ""
