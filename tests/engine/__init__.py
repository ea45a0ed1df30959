"""What the engine's tests share: admitted requests, and engines with default limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from server.engine.admission import Admission
from server.engine.engine import Embedded, Engine
from server.engine.pace import Pace
from server.engine.patience import PATIENCE, Patience
from server.engine.ratio import Ratio
from server.engine.sequence import SequenceGroup
from server.inference.backend import TokenIds
from server.inference.inputs import TokenIdInputs
from server.inference.loader import Encoder
from server.metrics import EngineMetrics, Metrics
from tests.different_texts import different_ids

Requests = Sequence[tuple[str, Sequence[int]]]  # (key, lengths of its sequences) of each

NO_LIMIT = 10**12


def open_admission() -> Admission:
    """Lets everybody in."""
    return Admission(
        max_queue_tokens=NO_LIMIT, max_wait_s=NO_LIMIT, tokens_per_second=Ratio(1_000, weight=1)
    )


def groups_of(requests: Requests, admission: Admission | None = None) -> list[SequenceGroup]:
    """Requests as the queue takes them, each let in by an admission."""
    admission = admission or open_admission()

    async def make() -> list[SequenceGroup]:
        return [
            SequenceGroup(
                [np.ones(length, np.int32) for length in lengths],
                1,
                admission.admit(key, sum(lengths)),
            )
            for key, lengths in requests
        ]

    return asyncio.run(make())


def group_of(*lengths: int, key: str = "key") -> SequenceGroup:
    (group,) = groups_of([(key, lengths)])
    return group


def ids(*token_ids: int) -> TokenIds:
    return np.array(token_ids, np.int32)


def different(count: int, length: int = 1) -> list[TokenIds]:
    """Sequences of this length, no two of them equal: those would be computed once."""
    return [ids(*token_ids) for token_ids in different_ids(count, length)]


def metrics_of_an_engine() -> tuple[Metrics, EngineMetrics]:
    metrics = Metrics(models=["model"], encoders=["model"])
    return metrics, EngineMetrics(metrics, "model")


def start_engine(
    encoder: Encoder,
    metrics: EngineMetrics | None = None,
    *,
    threads: int = 1,
    max_batch_tokens: int = 512,
    max_request_tokens: int = 300_000,
    max_queue_tokens: int = NO_LIMIT,
    max_wait_s: float = NO_LIMIT,
    patience: Patience = PATIENCE,
) -> Engine:
    return Engine(
        encoder,
        metrics or metrics_of_an_engine()[1],
        pace=Pace(max_batch_tokens, workers=threads),
        max_request_tokens=max_request_tokens,
        max_queue_tokens=max_queue_tokens,
        max_wait_s=max_wait_s,
        patience=patience,
    )


async def embedded(engine: Engine, sequences: Sequence[TokenIds], key: str = "key") -> Embedded:
    """Admit and embed, as a route does."""
    inputs = TokenIdInputs(is_list=True, token_ids=[one.tolist() for one in sequences])
    async with engine.admit(inputs, key) as ticket:
        return await engine.embed(sequences, ticket)


async def embed(
    engine: Engine, sequences: Sequence[TokenIds], key: str = "key"
) -> NDArray[np.float32]:
    return (await embedded(engine, sequences, key)).vectors


class Clock:
    """time.perf_counter, by which the workers' times are told, goes on only as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = time.perf_counter()
        monkeypatch.setattr(time, "perf_counter", lambda: self.now_s)


def let_pass(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop's clock jumps: what was to happen meanwhile happens at once."""
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + seconds)
