"""What a server asks of its models, whether they compute in this process or in another one.

Names and types; knows nothing of HTTP, keys or threads.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from server.errors import Draining, EngineSilent, ModelLoading
from server.inference.backend import TokenIds
from server.inference.inputs import Inputs


class Phase(enum.Enum):
    """Where a server is in its life."""

    LOADING = "loading"
    READY = "ready"
    SILENT = "silent"  # the process that computes does not answer
    DRAINING = "draining"

    def check_ready(self) -> None:
        """Refuse new work unless it is READY.

        Raises:
            ModelLoading, EngineSilent, Draining: the server is in that phase.
        """
        if self is Phase.LOADING:
            raise ModelLoading
        if self is Phase.SILENT:
            raise EngineSilent
        if self is Phase.DRAINING:
            raise Draining


@dataclass(frozen=True, slots=True)
class ModelState:
    """What changes about a model; the engine process tells its front ends these fields."""

    loaded: bool = False
    sound: bool = True  # computes what it should, if it is in memory
    resident_bytes: int | None = None  # what loading its encoder added; None: not known
    load_failed: bool = False  # when it was last asked for and not in memory


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


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a model computes with while it is in memory."""

    engine: TextEngine
    rotation: NDArray[np.float32] | None  # (embedding_dim, embedding_dim)
