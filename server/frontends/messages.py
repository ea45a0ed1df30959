"""What the processes say to each other: typed structs, as msgpack. Both run this very file.

A Question names the type of its answer. Arrays cross as they lie in memory, little-endian: token
ids are int32, vectors float32. Pure; nothing that is read here can run code.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.access.counters import Taken
from server.catalog.card import Dtype
from server.catalog.registry import Registry
from server.engine.interface import ModelState
from server.errors import ApiError
from server.frontends.framing import BadFrame
from server.frontends.summed_metrics import Samples
from server.inference.backend import TokenIds
from server.settings import Settings

_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")


class Message(msgspec.Struct, array_like=True, tag=True):
    """Something that one process says to the other."""


Answer = TypeVar("Answer")


class Question(Message, Generic[Answer]):
    """A message that wants an answer, of the type in the brackets."""


# Answers


class Matrix(msgspec.Struct, array_like=True):
    """Rows of float32."""

    rows: int
    numbers: memoryview

    @classmethod
    def of(cls, array: NDArray[np.float32]) -> Matrix:
        """A matrix (rows, columns)."""
        return cls(len(array), _bytes_of(array, _FLOAT32))

    def array(self) -> NDArray[np.float32]:
        """The matrix (rows, columns); read-only."""
        return np.frombuffer(self.numbers, _FLOAT32).reshape(self.rows, -1)


class EmbedAnswer(msgspec.Struct, array_like=True):
    """The vectors of one request (sequences, embedding_dim), and the time they took."""

    vectors: Matrix
    wait_s: float
    compute_s: float


class Failure(msgspec.Struct, array_like=True):
    """An ApiError, in place of an answer: class, message and whatever else it holds."""

    kind: str
    fields: dict[str, Any]

    @classmethod
    def of(cls, error: ApiError) -> Failure:
        """The error for the other process."""
        return cls(type(error).__name__, vars(error))

    def error(self) -> ApiError:
        """The error as the other process raised it: same class, message and headers.

        Raises:
            BadFrame: there is no such error.
        """
        kind = _error_kinds().get(self.kind)
        if kind is None or "message" not in self.fields:
            raise BadFrame(f"a failure of kind {self.kind}")
        # Not by its constructor, which takes what the message was made of.
        error = kind.__new__(kind, self.fields["message"])
        vars(error).update(self.fields)
        return error


# Questions of a front end


class Admit(Question[None]):
    """Let a request in before it is tokenised, by an estimate of its tokens.

    Its ticket, whose number the front end chooses, is held until `GiveBack`.
    """

    model: int  # its place in Welcome.served
    key: str  # whose share of the machine it uses
    tokens: int
    ticket: int


class Embed(Question[EmbedAnswer]):
    """Compute the vectors of one request."""

    model: int
    key: str
    ticket: int | None  # of `Admit`; None: let it in by its tokens
    lengths: memoryview  # int32, one a sequence
    token_ids: memoryview  # int32, one sequence after the other

    @classmethod
    def of(cls, model: int, key: str, ticket: int | None, sequences: Sequence[TokenIds]) -> Embed:
        """The tokens of one request, one array a sequence."""
        lengths = np.fromiter(map(len, sequences), _INT32, len(sequences))
        ids = sequences[0] if len(sequences) == 1 else np.concatenate(sequences)
        return cls(model, key, ticket, lengths.data.cast("B"), _bytes_of(ids, _INT32))

    def sequences(self) -> list[TokenIds]:
        """The token ids as they were given; read-only.

        Raises:
            BadFrame: the lengths do not add up.
        """
        try:
            ids = np.frombuffer(self.token_ids, _INT32)
            lengths: list[int] = np.frombuffer(self.lengths, _INT32).tolist()
        except ValueError as error:
            raise BadFrame(f"token ids that cannot be read: {error}") from None
        if not lengths or min(lengths) < 1 or sum(lengths) != len(ids):
            raise BadFrame("token ids whose lengths do not add up")
        sequences, start = [], 0
        for length in lengths:
            sequences.append(ids[start : start + length])
            start += length
        return sequences


class Load(Question[Matrix | None]):
    """Have a model in memory; the answer is its rotation, if it has one."""

    model: int


class TakeIfFits(Question[Taken]):
    """Ask a counter of requests or tokens; see `Counters`."""

    name: str
    amount: int
    most: int


class SamplesOfOthers(Question[list[Samples]]):
    """The metrics of all other processes, as they were told last."""


# Told by a front end


class GiveBack(Message):
    """A request that asked to be let in has ended; its ticket, if it got one, is free."""

    ticket: int


class Alive(Message):
    """The front end's event loop goes round; told every tick, and before metrics are asked for."""

    counted: Samples  # its metrics, as far as they have changed since it told them last


class Ready(Message):
    """The front end listens."""


class CannotStart(Message):
    """The front end never will."""

    why: str


# Told by the engine process


class Welcome(Message):
    """What a front end must know to begin; holds the settings' secrets."""

    settings: Settings
    served: list[tuple[str, Dtype, str]]  # name, dtype and fingerprint of each model


class EngineState(Message):
    """What changes about the engine process; told again and again, as it lives."""

    is_ready: bool = False
    models: list[ModelState] = []  # in the order of Welcome.served
    drains_elsewhere: bool = False  # some front end still has work in flight, while all drain


class Drain(Message):
    """Finish what is in flight and end; the second time, at once."""


def served_by(registry: Registry) -> list[tuple[str, Dtype, str]]:
    """Name, dtype and fingerprint of each model."""
    return [(card.name, card.dtype, card.fingerprint) for card in registry.cards]


ANY_MESSAGE = (
    Admit | Embed | Load | TakeIfFits | SamplesOfOthers | GiveBack | Alive | Ready
    | CannotStart | Welcome | EngineState | Drain
)  # fmt: skip


def _bytes_of(array: NDArray[Any], dtype: np.dtype[Any]) -> memoryview:
    return np.ascontiguousarray(array, dtype=dtype).data.cast("B")


@functools.cache
def _error_kinds() -> dict[str, type[ApiError]]:
    found: list[type[ApiError]] = [ApiError]
    for kind in found:  # grows while it is walked
        found += kind.__subclasses__()
    return {kind.__name__: kind for kind in found}
