"""What the front end asks of the models, whether they compute in this process or in another one.

Names and types; knows nothing of HTTP, keys or threads.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Card
from server.catalog.registry import Registry
from server.errors import Draining, ModelLoading
from server.inference.backend import TokenIds
from server.inference.inputs import Inputs
from server.metrics import Metrics


class Phase(enum.Enum):
    """Where a server is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"

    def check_ready(self) -> None:
        """Refuse new work unless it is READY.

        Raises:
            ModelLoading, Draining: the server is in that phase.
        """
        if self is Phase.LOADING:
            raise ModelLoading
        if self is Phase.DRAINING:
            raise Draining


@dataclass(frozen=True, slots=True)
class ModelState:
    """What of a model is in memory."""

    card: Card
    encoder_card: Card  # whose files are read for it
    loaded: bool
    resident_bytes: int | None  # what loading the encoder added; None: not known
    sound: bool = True  # computes what it should, if it is in memory


class TextEngine(Protocol):
    """Turns the texts of one request into vectors; see `Engine`."""

    def admit(self, inputs: Inputs, key: str) -> AbstractAsyncContextManager[Any]:
        """Let a request in, by an estimate of its tokens; gives the ticket that `embed` wants."""
        ...

    async def tokenize(
        self, inputs: Inputs, *, prompt: str, truncate: bool, own_token_ids: bool
    ) -> list[TokenIds]:
        """The token ids that the model will read, one array an input, in input order."""
        ...

    async def embed(
        self, token_ids: Sequence[TokenIds], ticket: Any
    ) -> tuple[NDArray[np.float32], float, float]:
        """Vectors (sequences, embedding_dim), seconds of waiting, seconds of computing."""
        ...


# What computes for a model, and its rotation (embedding_dim, embedding_dim).
Loaded = tuple[TextEngine, NDArray[np.float32] | None]


class OfferedModel(Protocol):
    """A model that requests may name; see `ServedModel`."""

    @property
    def card(self) -> Card: ...

    @property
    def own_token_ids(self) -> bool: ...

    @property
    def loaded(self) -> Loaded | None:
        """What computes, if it is in memory."""
        ...

    async def load(self) -> Loaded:
        """What computes, as soon as it is in memory."""
        ...


class OfferedModels(Protocol):
    """All models of a server, and its life's phases; see `ServedModels`."""

    @property
    def registry(self) -> Registry: ...

    @property
    def encoder_cards(self) -> list[Card]: ...

    @property
    def phase(self) -> Phase: ...

    @property
    def in_flight(self) -> int: ...

    async def load(self, metrics: Metrics) -> None:
        """Turn ready; raises StartupError."""
        ...

    def work(self, name: str) -> AbstractContextManager[OfferedModel]:
        """The model with this name or alias, if it takes work; what happens inside is in flight."""
        ...

    def states(self) -> list[ModelState]:
        """What of each model is in memory, in the order of the settings."""
        ...

    def check_ready(self) -> None:
        """Raise ModelLoading, Draining or ModelFailing unless every model takes work."""
        ...

    def drain(self) -> None:
        """Take no new work from now on; what is in flight goes on."""
        ...

    def close(self) -> None:
        """Answer what is still in flight with Draining."""
        ...

    def join(self) -> None:
        """Wait for all threads, after `close`."""
        ...
