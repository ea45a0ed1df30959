"""POST /v1/embeddings: texts or token ids become vectors."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.access.keys import Scope
from server.api.answer_shapes import EMBEDDINGS
from server.api.openapi import OF_WORK, answers
from server.api.pipeline import Pipeline
from server.api.plain_route import PlainRoute, described
from server.api.schemas import EmbeddingRequest, answer_bytes, embeddings_json
from server.inference.vector_form import VectorForm

# Rotating, cutting and writing this many vectors takes longer than the way to a thread and back.
THREAD_FROM_VECTORS = 64

router = APIRouter(route_class=PlainRoute)


@router.post(
    "/v1/embeddings",
    operation_id="createEmbedding",
    openapi_extra=described(EmbeddingRequest),
    responses=answers({"application/json": EMBEDDINGS}, *OF_WORK, limited=True, fingerprinted=True),
)
async def create_embeddings(request: Request) -> Response:
    """Turn texts (or token ids) into vectors."""
    async with Pipeline.enter(request, Scope.EMBEDDINGS) as pipeline:
        asked = await pipeline.read(EmbeddingRequest)
        async with pipeline.use_model(asked.model, asked.input_type) as model:
            form = VectorForm.of(model.card, asked.dimensions)
            encoding = asked.encoding_format or "float"
            size = answer_bytes(model.card, len(asked.input), form.dimensions, encoding)
            pipeline.hold_answer(size)
            reading = pipeline.plan_reading(
                model, asked.input, input_type=asked.input_type, truncate=asked.truncate
            )
            async with pipeline.admit(model, reading) as admitted:
                token_ids = await admitted.tokenize()
                user = asked.safety_identifier or asked.user
                vectors = await admitted.embed(token_ids, user=user)

            def write() -> bytes:
                return embeddings_json(
                    form.shape(vectors, admitted.rotation),
                    model=model.card.name,
                    num_tokens=admitted.record.num_tokens,
                    encoding_format=encoding,
                )

            is_large = len(vectors) >= THREAD_FROM_VECTORS
            return await pipeline.answer(write, in_thread=is_large)
