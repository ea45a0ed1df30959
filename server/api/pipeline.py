"""A request's common way, for every route that asks a model: who may, how much, in which order.

A route calls the steps in the order in which they stand here and adds what is its own: what it
reads, what it asks and what it writes. Each step raises the ApiError that ends the request. Lives in
the event loop's thread; knows nothing of what a route answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray

from server.access.access import Access
from server.access.keys import ANONYMOUS, Key, Scope
from server.api.body import read_body
from server.api.client_watch import ClientWatch
from server.api.client_words import counted_user
from server.api.fingerprint_pin import FINGERPRINT, check_fingerprint
from server.api.reading import Reading
from server.api.record import RequestRecord
from server.api.schemas import LARGE_BODY_BYTES, RequestBody
from server.api.seats import Seat
from server.api.sending import PiecewiseResponse
from server.api.services import Services, services_of
from server.catalog.card import Card
from server.engine.client_patience import ADDRESS
from server.engine.interface import TextEngine
from server.engine.offering import OfferedModel
from server.errors import RequestTimedOut, TokenWithoutEmbedding
from server.inference.backend import TokenIds
from server.inference.inputs import Inputs

Body = TypeVar("Body", bound=RequestBody)
# Objects of a small body take at most so many bytes for each of its own: ids of four digits.
OBJECT_BYTES_PER_BYTE = 10


@dataclass(slots=True)
class AdmittedRequest:
    """A request that was let in: its inputs and what computes them; made by `Pipeline.admit`."""

    access: Access
    record: RequestRecord
    key: Key
    card: Card
    reading: Reading
    engine: TextEngine
    rotation: NDArray[np.float32] | None  # of the model, (embedding_dim, embedding_dim)
    ticket: Any  # the engine's

    async def tokenize(self) -> list[TokenIds]:
        """The token ids that the model will read, one array an input, in input order.

        Raises:
            InvalidRequest: an id is unknown, an input or all of them are too long.
        """
        reading, record = self.reading, self.record
        with record.stage("tokenize"):
            token_ids = await self.engine.tokenize(
                reading.inputs,
                prompt=reading.prompt,
                truncate=reading.truncate,
                own_token_ids=reading.own_token_ids,
            )
        record.num_inputs, record.num_tokens = len(token_ids), sum(map(len, token_ids))
        return token_ids

    async def embed(
        self, token_ids: Sequence[TokenIds], *, user: str | None
    ) -> NDArray[np.float32]:
        """Charge the tokens, compute, and enter them into the ledger.

        Args:
            token_ids: from `tokenize`.
            user: who the client says that the request is for.

        Returns:
            (inputs, embedding_dim), float32: the vectors as the encoder gives them.

        Raises:
            RateLimitExceeded, BudgetSpent, StorageUnavailable: see `Access.spend`.
            InvalidRequest: the weights lack a token of an input.
            InferenceFailed, Draining, Overloaded: see `TextEngine.embed`.
        """
        record, tokens = self.record, self.record.num_tokens
        user = counted_user(user, self.access)
        async with self.access.spend(
            self.key, record.limits, tokens, model=self.card.name, user=user
        ):
            # Of a request that fails here, nobody knows how much of it was waiting.
            with record.stage("compute"):
                try:
                    vectors, wait_s, compute_s = await self.engine.embed(token_ids, self.ticket)
                except TokenWithoutEmbedding as error:
                    raise error.at(self.reading.inputs.position(error.row)) from None
        record.split_compute(wait_s, compute_s)
        return vectors


class Pipeline:
    """One request on its way; made by `enter`."""

    def __init__(
        self, request: Request, services: Services, record: RequestRecord, key: Key, seat: Seat
    ) -> None:
        self._request = request
        self._services = services
        self._record = record
        self._key = key
        self._seat = seat
        self._fingerprint = ""  # of what decides the answer, once the model is known

    @classmethod
    @contextlib.asynccontextmanager
    async def enter(cls, request: Request, scope: Scope) -> AsyncIterator[Pipeline]:
        """Let a request in by its key, and give it a seat and a deadline until it is answered.

        Raises:
            AuthenticationFailed, ScopeMissing: see `RequestRecord.require_key`.
            Overloaded: no seat is free.
            RequestTimedOut: what happens inside takes too long.
        """
        services = services_of(request)
        record = RequestRecord.of(request.scope)
        key = record.require_key(scope)
        timeout_s = services.settings.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                seat = services.seats.take(_whose(request, key))
                record.give_back.append(seat.give_back)
                try:
                    yield cls(request, services, record, key, seat)
                except BaseException:
                    seat.hold(0)  # what it took is gone before the refusal is sent
                    raise
        except TimeoutError:
            raise RequestTimedOut(timeout_s) from None

    async def read(self, schema: type[Body]) -> Body:
        """The request's body, as this schema has it.

        Raises:
            ApiError: see `read_body` and `RequestBody.read`.
        """
        with self._record.stage("read"):
            settings = self._services.settings
            body = await read_body(self._request, settings.max_body_bytes, self._seat)
            if len(body) <= LARGE_BODY_BYTES:
                self._seat.hold(OBJECT_BYTES_PER_BYTE * len(body))
                return schema.read(body)
            return await self._services.large_bodies.read(
                schema, body, self._seat, max_request_tokens=settings.max_request_tokens
            )

    @contextlib.asynccontextmanager
    async def use_model(
        self, name: str, input_type: str | None = None
    ) -> AsyncIterator[OfferedModel]:
        """The model with this name or alias; the request is in flight until the context ends.

        Args:
            input_type: names one of the model's prompts, which decides the fingerprint.

        Raises:
            ModelNotFound, ModelLoading, Draining, ModelFailing: see `Offering.resolve`.
            ModelNotAllowed: the key may not use it.
            InvalidRequest: the model has no such prompt.
            FingerprintMismatch, InvalidRequest: see `check_fingerprint`.
            RateLimitExceeded: the key's requests of this minute are used up.
            StorageUnavailable: they cannot be counted, and must be.
        """
        with self._services.models.request_for(name) as model:
            card = model.card
            self._record.model = card.name
            self._key.check_model(card.name, card.aliases)
            self._fingerprint = card.prompt_table.fingerprint_for(input_type)
            check_fingerprint(self._request.headers, card.name, self._fingerprint)
            if self._record.limits is not None:
                await self._record.limits.take_request()
            yield model

    def plan_reading(
        self,
        model: OfferedModel,
        inputs: Inputs,
        *,
        input_type: str | None = None,
        truncate: bool | None = None,
    ) -> Reading:
        """How the inputs become tokens, by what the request says and the settings.

        Args:
            input_type: names one of the model's prompts.
            truncate: cut inputs that are too long; default: as the settings say.

        Raises:
            InvalidRequest: see `Reading.of`.
        """
        cut = self._services.settings.truncate_inputs if truncate is None else truncate
        return Reading.of(
            model.card,
            inputs,
            input_type=input_type,
            truncate=cut,
            own_token_ids=model.own_token_ids,
        )

    def hold_answer(self, num_bytes: int) -> None:
        """Count what vectors and answer will take, until the answer is sent.

        Raises:
            RequestTooLarge, Overloaded: see `Seats.change`.
        """
        self._seat.hold(self._seat.bytes + num_bytes)

    @contextlib.asynccontextmanager
    async def admit(self, model: OfferedModel, reading: Reading) -> AsyncIterator[AdmittedRequest]:
        """Let the request's work in, once its model is in memory; it ends if the client leaves.

        Raises:
            ModelLoadFailed, Draining: see `OfferedModel.load`.
            Overloaded: too much work waits.
            ClientDisconnect: the client left before the work was done.
        """
        record = self._record
        async with ClientWatch(self._request):
            if (loaded := model.loaded) is None:
                with record.stage("load"):  # others wait for the same load
                    loaded = await model.load()
            engine = loaded.engine
            async with engine.admit(reading.inputs, _whose(self._request, self._key)) as ticket:
                yield AdmittedRequest(
                    access=self._services.access,
                    record=record,
                    key=self._key,
                    card=model.card,
                    reading=reading,
                    engine=engine,
                    rotation=loaded.rotation,
                    ticket=ticket,
                )

    async def answer(self, write: Callable[[], bytes], *, in_thread: bool = False) -> Response:
        """The response with a JSON body, once the model is known.

        Args:
            write: makes the body.
            in_thread: it takes longer than the way to a thread and back.
        """
        with self._record.stage("serialize"):
            body = await asyncio.to_thread(write) if in_thread else write()
        headers = {FINGERPRINT: self._fingerprint}
        return PiecewiseResponse(body, media_type="application/json", headers=headers)


def _whose(request: Request, key: Key) -> str:
    """Who shares seats and memory with others: a key, or an address while no key is asked for."""
    client = request.scope.get("client")
    return key.id if key is not ANONYMOUS or client is None else ADDRESS + client[0]
