"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from server.access.keys import Key, Scope
from server.api.deps import (
    Services,
    abandoned_when_client_leaves,
    deadline,
    read_body,
    require_key,
    services_of,
)
from server.api.request_record import RequestRecord
from server.api.schemas import EmbeddingRequest, embeddings_json
from server.catalog.card import Card
from server.engine.interface import LoadedModel
from server.engine.offering import OfferedModel
from server.errors import FingerprintMismatch, InvalidRequest, TokenWithoutEmbedding
from server.inference.inputs import TokenIdInputs
from server.inference.vector_form import VectorForm

# Rotating, cutting and writing this many vectors takes longer than the way to a thread and back.
THREAD_FROM_VECTORS = 64
EXPECT_FINGERPRINT = "x-expect-embedding-fingerprint"


class PlainRoute(APIRoute):
    """A route whose function takes the request and gives the response itself.

    FastAPI's own handler would solve dependencies and look for a body; here it only describes the
    route for /openapi.json.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function as it is."""
        return self.endpoint


router = APIRouter(route_class=PlainRoute)


@router.post(
    "/v1/embeddings",
    openapi_extra={
        "parameters": [
            {
                "name": EXPECT_FINGERPRINT,
                "in": "header",
                "description": "Refuse the request if the model's fingerprint is another one.",
                "schema": {"type": "string", "pattern": "^[0-9a-fA-F]{16}$"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": EmbeddingRequest.model_json_schema()}},
        },
    },
)
async def create_embeddings(request: Request) -> Response:
    """Turn texts (or token ids) into vectors."""
    services = services_of(request)
    key = require_key(request, Scope.EMBEDDINGS)
    async with deadline(services.settings.request_timeout_s):
        return await read_and_answer(request, services, key)


async def read_and_answer(request: Request, services: Services, key: Key) -> Response:
    """Read the request and find its model; the rest is `answer`.

    Raises:
        ApiError: as `answer`, and those of reading.
    """
    record = RequestRecord.of(request.scope)
    with services.seats.take() as seat:
        with record.stage("read"):
            body = await read_body(request, services.settings.max_body_bytes, seat)
            asked = EmbeddingRequest.read(body)
        with services.models.request_for(asked.model) as model:
            record.model = model.card.name
            key.check_model(model.card.name, model.card.aliases)
            check_fingerprint(request, model.card)
            if record.limits is not None:
                await record.limits.take_request()
            return await answer(request, asked, key, model, services)


async def answer(
    request: Request, asked: EmbeddingRequest, key: Key, model: OfferedModel, services: Services
) -> Response:
    """Check what depends on the model, compute, write.

    Raises:
        InvalidRequest: the model cannot do what is asked, or an input is too long.
        ClientDisconnect: the client left before its vectors were there.
        ModelLoadFailed: the model is not in memory and cannot be loaded.
        Overloaded: too much work waits.
        RateLimitExceeded, BudgetSpent: the key has not as many tokens left.
    """
    settings, access = services.settings, services.access
    record = RequestRecord.of(request.scope)
    card = model.card
    form = VectorForm.of(card, asked.dimensions)
    own_token_ids = model.own_token_ids and isinstance(asked.input, TokenIdInputs)
    prompt = choose_prompt(asked, card, own_token_ids=own_token_ids)
    cut_inputs = settings.truncate_inputs if asked.truncate is None else asked.truncate

    async with abandoned_when_client_leaves(request):
        loaded = model.loaded or await load(model, record)
        engine, rotation = loaded.engine, loaded.rotation
        async with engine.admit(asked.input, key.id) as ticket:
            with record.stage("tokenize"):
                token_ids = await engine.tokenize(
                    asked.input, prompt=prompt, truncate=cut_inputs, own_token_ids=own_token_ids
                )
            record.num_inputs, record.num_tokens = len(token_ids), sum(map(len, token_ids))
            user = asked.safety_identifier or asked.user
            async with access.spend(
                key, record.limits, record.num_tokens, model=card.name, user=user
            ):
                # Of a request that fails here, nobody knows how much of it was waiting.
                with record.stage("compute"):
                    try:
                        vectors, wait_s, compute_s = await engine.embed(token_ids, ticket)
                    except TokenWithoutEmbedding as error:
                        raise error.at(asked.input.position(error.row)) from None
            record.stages_s |= {"wait": wait_s, "compute": compute_s}

    def write() -> bytes:
        return embeddings_json(
            form.shape(vectors, rotation),
            model=card.name,
            num_tokens=record.num_tokens,
            encoding_format=asked.encoding_format or "float",
        )

    with record.stage("serialize"):
        body = await asyncio.to_thread(write) if len(vectors) >= THREAD_FROM_VECTORS else write()
    headers = {"x-embedding-fingerprint": card.fingerprint}
    return Response(body, media_type="application/json", headers=headers)


async def load(model: OfferedModel, record: RequestRecord) -> LoadedModel:
    """Wait until the model is in memory; others wait for the same load.

    Raises:
        ModelLoadFailed: it cannot be loaded.
        Draining: the server was stopped meanwhile.
    """
    with record.stage("load"):
        return await model.load()


def check_fingerprint(request: Request, card: Card) -> None:
    """Refuse a request that pins a fingerprint, unless it is this model's.

    Raises:
        FingerprintMismatch: the model has another one.
        InvalidRequest: what is pinned is no fingerprint.
    """
    pinned = request.headers.getlist(EXPECT_FINGERPRINT)
    if not pinned:
        return
    expected = ", ".join(pinned).strip().lower()
    if not re.fullmatch("[0-9a-f]{16}", expected):
        raise InvalidRequest(
            f"{EXPECT_FINGERPRINT} must be 16 hex digits, not {expected[:40]!r}; the model "
            f"'{card.name}' has the embedding fingerprint {card.fingerprint} on this server.",
            param=EXPECT_FINGERPRINT,
        )
    if expected != card.fingerprint:
        raise FingerprintMismatch(
            EXPECT_FINGERPRINT, model=card.name, fingerprint=card.fingerprint, expected=expected
        )


def choose_prompt(asked: EmbeddingRequest, card: Card, *, own_token_ids: bool) -> str:
    """The text put before each input: by `input_type`, else the card's default, else nothing.

    Raises:
        InvalidRequest: a prompt is asked for together with the model's own token ids.
    """
    prompt = card.prompt(asked.input_type)
    if not own_token_ids:
        return prompt
    if prompt and asked.input_type:
        raise InvalidRequest(
            "input_type cannot be used with token ids of the model's own vocabulary; put the "
            "prompt's ids in front yourself.",
            param="input_type",
        )
    return ""
