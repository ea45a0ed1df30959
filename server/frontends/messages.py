"""What frames hold, as bytes and back. Pure; both processes run the same version of this file.

Numbers are little-endian; token ids are int32, vectors float32, as they lie in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import SecretStr

from server.catalog.card import Dtype
from server.catalog.registry import Registry
from server.engine.interface import ModelState, Phase
from server.frontends.channel import BadFrame, Parts
from server.inference.backend import TokenIds
from server.settings import Settings

_EMBED = struct.Struct("<HHI")  # model, bytes of the key's id, sequences
_MODEL = struct.Struct("<H")
_SECONDS = struct.Struct("<dd")  # wait, compute
_COUNTER = struct.Struct("<qd")  # count, seconds until it ends
_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a front end must know to begin."""

    settings: Settings
    # Name, dtype and fingerprint of each model, in the order in which frames number them.
    served: list[tuple[str, Dtype, str]]

    def write(self) -> bytes:
        """Holds the settings' secrets."""
        settings = {name: _plain(value) for name, value in self.settings}
        return orjson.dumps([settings, self.served])

    @classmethod
    def read(cls, content: bytes) -> Welcome:
        """As it was written."""
        settings, served = orjson.loads(content)
        return cls(Settings(**settings), [(name, dtype, mark) for name, dtype, mark in served])


def served_by(registry: Registry) -> list[tuple[str, Dtype, str]]:
    """Name, dtype and fingerprint of each model."""
    return [(card.name, card.dtype, card.fingerprint) for card in registry.cards]


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


@dataclass(frozen=True, slots=True)
class RemoteState:
    """What a front end knows of a model in the engine process."""

    loaded: bool = False
    sound: bool = True
    resident_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class EngineState:
    """What a front end knows of the engine process."""

    phase: Phase = Phase.LOADING
    models: Sequence[RemoteState] = ()  # in the order in which frames number them
    drains_others: bool = False  # some front end still has work in flight, while all drain

    @classmethod
    def of(
        cls, phase: Phase, states: Iterable[ModelState], *, drains_others: bool = False
    ) -> EngineState:
        """What is to be known of these models."""
        models = [RemoteState(one.loaded, one.sound, one.resident_bytes) for one in states]
        return cls(phase, models, drains_others)

    def write(self) -> bytes:
        models = [[model.loaded, model.sound, model.resident_bytes] for model in self.models]
        return orjson.dumps([self.phase.value, models, self.drains_others])

    @classmethod
    def read(cls, content: bytes) -> EngineState:
        """As it was written."""
        phase, models, drains_others = orjson.loads(content)
        return cls(Phase(phase), [RemoteState(*model) for model in models], drains_others)


class EmbedQuestion(NamedTuple):
    """The tokens of one request."""

    model: int
    key: str  # whose share of the machine it uses
    token_ids: Sequence[TokenIds]

    def write(self) -> Parts:
        key = self.key.encode()
        lengths = np.fromiter(map(len, self.token_ids), _INT32, len(self.token_ids))
        ids = self.token_ids[0] if len(self.token_ids) == 1 else np.concatenate(self.token_ids)
        head = _EMBED.pack(self.model, len(key), len(lengths))
        return (head, key, lengths.tobytes(), ids.astype(_INT32, copy=False).tobytes())

    @classmethod
    def read(cls, content: bytes) -> EmbedQuestion:
        """As it was written.

        Raises:
            BadFrame: the lengths do not add up.
        """
        try:
            model, key_bytes, count = _EMBED.unpack_from(content)
            start = _EMBED.size + key_bytes
            key = content[_EMBED.size : start].decode()
            numbers = np.frombuffer(content, _INT32, offset=start)
            lengths: list[int] = numbers[:count].tolist()
        except (struct.error, ValueError) as error:
            raise BadFrame(f"a question that cannot be read: {error}") from None
        if (
            not count
            or len(lengths) < count
            or min(lengths) < 1
            or sum(lengths) != len(numbers) - count
        ):
            raise BadFrame("a question whose lengths do not add up")
        token_ids = []
        start = count
        for length in lengths:
            token_ids.append(numbers[start : start + length])
            start += length
        return cls(model, key, token_ids)


def write_vectors(vectors: NDArray[np.float32], wait_s: float, compute_s: float) -> Parts:
    """Vectors (sequences, embedding_dim) and the time they took."""
    plain = np.ascontiguousarray(vectors, dtype=_FLOAT32)
    return (_SECONDS.pack(wait_s, compute_s), plain.data.cast("B"))


def read_vectors(content: bytes, sequences: int) -> tuple[NDArray[np.float32], float, float]:
    """As they were written; the array is read-only."""
    wait_s, compute_s = _SECONDS.unpack_from(content)
    numbers = np.frombuffer(content, _FLOAT32, offset=_SECONDS.size)
    return numbers.reshape(sequences, -1), wait_s, compute_s


def write_model(model: int) -> bytes:
    """A model by its number."""
    return _MODEL.pack(model)


def read_model(content: bytes) -> int:
    """As it was written.

    Raises:
        BadFrame: it is none.
    """
    try:
        (model,) = _MODEL.unpack(content)
    except struct.error as error:
        raise BadFrame(f"a model that cannot be read: {error}") from None
    return int(model)


def write_rotation(rotation: NDArray[np.float32] | None) -> Parts:
    """A rotation (embedding_dim, embedding_dim), if there is one."""
    if rotation is None:
        return ()
    return (np.ascontiguousarray(rotation, dtype=_FLOAT32).data.cast("B"),)


def read_rotation(content: bytes, embedding_dim: int) -> NDArray[np.float32] | None:
    """As it was written; the array is read-only."""
    if not content:
        return None
    return np.frombuffer(content, _FLOAT32).reshape(embedding_dim, embedding_dim)


def write_counter(counted: int, ends_in_s: float) -> bytes:
    """What a counter holds, and in how many seconds it ends."""
    return _COUNTER.pack(counted, ends_in_s)


def read_counter(content: bytes) -> tuple[int, float]:
    """As it was written."""
    counted, ends_in_s = _COUNTER.unpack(content)
    return counted, ends_in_s


def write_amount(name: str, amount: int) -> bytes:
    """A counter's name, and what is added to it."""
    return orjson.dumps([name, amount])


def read_amount(content: bytes) -> tuple[str, int]:
    """As it was written.

    Raises:
        BadFrame: it is none.
    """
    try:
        name, amount = orjson.loads(content)
    except ValueError as error:
        raise BadFrame(f"a count that cannot be read: {error}") from None
    return str(name), int(amount)
