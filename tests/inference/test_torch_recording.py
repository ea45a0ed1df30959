"""Recorded passes on a fake of a CUDA device: each is tried, and what differs is not used."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from server.catalog.card import Card
from server.inference.backend import TokenIds
from server.inference.torch_backend import TorchBackend
from server.inference.torch_cuda import CudaPipeline
from tests import fake_cuda

BUDGET = 64
SHAPES = 3  # 16, 32 and 64 tokens, of at most 128 a text

Encoder = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


@pytest.fixture(scope="module")
def exact(plain_card: Card) -> TorchBackend:
    return TorchBackend(plain_card, "cpu:0")


def sequences(*lengths: int, seed: int = 0) -> list[TokenIds]:
    draw = np.random.default_rng(seed)
    return [draw.integers(1000, 30_000, length, dtype=np.int32) for length in lengths]


def record(encoder: Encoder) -> CudaPipeline:
    pipeline = CudaPipeline(encoder, torch.device("cpu"), 384)  # type: ignore[arg-type]
    pipeline.record(
        lambda lengths: sequences(*lengths), "float32", max_tokens=BUDGET, max_input_tokens=128
    )
    return pipeline


def test_recorded_passes_give_the_vectors_of_each_packing(
    exact: TorchBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_cuda.install(monkeypatch, pool_bytes=4096)
    pipeline = record(exact._packed)
    assert pipeline.recordings is not None
    assert (pipeline.recordings.num_refused, pipeline.recordings.num_bytes) == (0, 4096)
    assert not caplog.messages
    chance = random.Random(1)
    for seed in range(12):
        lengths = [chance.randint(1, 11) for _ in range(chance.randint(1, 7))]
        assert pipeline.recordings.fitting(len(lengths), sum(lengths), max(lengths)) is not None
        found = pipeline.run(sequences(*lengths, seed=seed))
        assert np.abs(found - exact.forward(sequences(*lengths, seed=seed))).max() < 1e-6


def test_a_shape_whose_replay_differs_is_told_once_and_not_used(
    exact: TorchBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_cuda.install(monkeypatch)

    def fixed(ids: torch.Tensor, bounds: torch.Tensor, longest: int) -> torch.Tensor:
        if len(ids) == 32:  # asks the device, whose answer of that time is part of the graph
            bounds = torch.tensor(bounds.tolist(), dtype=torch.int32)
        return exact._packed(ids, bounds, longest)

    pipeline = record(fixed)
    (line,) = caplog.messages
    assert line.startswith(
        f"1 of {SHAPES} recorded shapes are not used, since a replay differs from the pass: "
        "32 tokens of 8 texts of at most 128 (cosine "
    )
    assert pipeline.recordings is not None
    assert pipeline.recordings.num_refused == 1
    larger = pipeline.recordings.fitting(2, 30, 20)
    assert larger is not None
    assert larger.shape == (64, 16, 128)
    found = pipeline.run(sequences(20, 10))
    assert np.abs(found - exact.forward(sequences(20, 10))).max() < 1e-6


def test_a_shape_that_cannot_be_compared_is_not_used(
    exact: TorchBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_cuda.install(monkeypatch)
    passes = 0

    def short_of_memory(ids: torch.Tensor, bounds: torch.Tensor, longest: int) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if len(ids) == BUDGET and passes > 2 * SHAPES:  # beside what the recordings keep
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")
        return exact._packed(ids, bounds, longest)

    pipeline = record(short_of_memory)
    assert "64 tokens of 16 texts of at most 128 (CUDA out of memory" in caplog.messages[0]
    assert pipeline.recordings is not None
    assert pipeline.recordings.fitting(2, 50, 30) is None
    assert pipeline.recordings.fitting(2, 30, 20) is not None


def test_a_server_tells_what_its_recordings_keep_and_how_many_are_not_used(
    plain_card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.inference import torch_backend
    from server.inference.backend import LoadOptions

    recorded = SimpleNamespace(num_bytes=4096, num_refused=3)
    monkeypatch.setattr(TorchBackend, "recordings", recorded)
    monkeypatch.setattr(TorchBackend, "prepare", lambda backend, wished: (64, 1e6))
    _, capacity = torch_backend.load_backends(plain_card, ["cpu:0", "cpu:0"], LoadOptions(1, 64))
    assert (capacity.recorded_bytes, capacity.refused_shapes) == (8192, 6)
