"""The pipeline on a real GPU, where there is one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from server.catalog.card import Card
from server.inference import torch_backend
from server.inference.backend import Layout, LoadOptions, TokenIds
from server.inference.compilations import COMPILATIONS
from server.inference.loader import Encoder
from server.inference.pooling import cosines
from server.inference.torch_backend import TorchBackend, load_backends
from server.inference.torch_compile import are_compiled
from server.inference.torch_devices import find_devices, why_not_computing


def sequences(*lengths: int, seed: int = 0) -> list[TokenIds]:
    draw = np.random.default_rng(seed)
    return [draw.integers(1000, 30_000, length, dtype=np.int32) for length in lengths]


def backend_on(card: Card, device: str) -> TorchBackend:
    backend = TorchBackend(card, device)
    backend.prepare(4096)
    return backend


@pytest.mark.parametrize(("dtype", "least"), [("float16", 0.99999), ("bfloat16", 0.9995)])
def test_replays_with_every_packing_give_the_vectors_of_the_cpu(
    cuda: str, plain_card: Card, encoder: Encoder, dtype: str, least: float
) -> None:
    backend = backend_on(plain_card.computed_in(dtype), cuda)  # type: ignore[arg-type]
    assert backend.layout is Layout.PACKED
    draw = np.random.default_rng(1)
    for round_number in range(60):
        lengths = draw.integers(1, 257, draw.integers(1, 40))
        texts = sequences(*lengths, seed=round_number)
        found = backend.forward(texts)
        assert np.isfinite(found).all()
        if round_number % 6 == 0:
            assert cosines(found, encoder.backends[0].forward(texts)).min() > least


def test_more_sequences_than_a_recorded_shape_takes_are_computed_too(
    cuda: str, plain_card: Card, encoder: Encoder
) -> None:
    backend = backend_on(plain_card.computed_in("float16"), cuda)
    texts = sequences(*[1] * 2000)
    few = encoder.backends[0].forward(texts[:50])
    assert cosines(backend.forward(texts)[:50], few).min() > 0.9999


def test_threads_do_not_disturb_each_other(cuda: str, plain_card: Card) -> None:
    backend = backend_on(plain_card.computed_in("float16"), cuda)
    cases = [sequences(*[1 + seed * 7 % 250] * (1 + seed % 13), seed=seed) for seed in range(80)]
    expected = [backend.forward(case) for case in cases]
    with ThreadPoolExecutor(4) as threads:
        for found, known in zip(threads.map(backend.forward, cases), expected, strict=True):
            assert np.abs(found - known).max() < 1e-3


def test_in_float32_it_is_padded_and_exact(cuda: str, plain_card: Card, encoder: Encoder) -> None:
    backend = backend_on(plain_card, cuda)
    assert backend.layout is Layout.PADDED
    texts = sequences(1, 5, 100, 256)
    assert cosines(backend.forward(texts), encoder.backends[0].forward(texts)).min() > 0.99999


def test_torch_can_use_the_gpu(cuda: str) -> None:
    found = find_devices()
    assert cuda in [gpu.name for gpu in found.usable]
    assert why_not_computing(cuda) == ""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_recorded_shape_differs_from_its_pass_and_their_memory_is_told(
    cuda: str, plain_card: Card, caplog: pytest.LogCaptureFixture, dtype: str
) -> None:
    nothing = torch.full((1 << 28,), torch.nan, dtype=torch.float16, device=cuda)
    del nothing  # what the recordings do not write is likely to be NaN
    torch.cuda.empty_cache()
    backend = TorchBackend(plain_card.computed_in(dtype), cuda)  # type: ignore[arg-type]
    budget, tokens_per_second = backend.prepare(16_384)
    assert (budget, tokens_per_second > 0) == (16_384, True)
    assert backend.recordings is not None
    assert backend.recordings.num_refused == 0
    assert backend.recordings.num_bytes > 0
    assert not caplog.messages


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_a_compiled_model_is_not_compiled_again_while_it_serves(
    cuda: str,
    plain_card: Card,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch_backend, "worth_compiling", lambda transformer: True)
    told: list[int] = []
    monkeypatch.setattr(COMPILATIONS, "tell", lambda: told.append(1))
    (backend,), _ = load_backends(
        plain_card.computed_in("float16"), [cuda], LoadOptions(max_batch_tokens=4096)
    )
    assert are_compiled(backend._padded.transformer)
    draw = np.random.default_rng(2)
    for round_number in range(60):
        lengths = draw.integers(1, draw.choice([2, 20, 257]), draw.integers(1, 40))
        backend.forward(sequences(*lengths, seed=round_number))
    few = sequences(1, 30, 256)
    assert cosines(backend.forward(few), encoder.backends[0].forward(few)).min() > 0.9999
    assert told == []
