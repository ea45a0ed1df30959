"""A pass that finds no memory while another model is loaded waits for it, before it gives up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from server.catalog.card import Card
from server.inference import torch_backend, torch_cuda
from server.inference.backend import Capacity, OutOfMemory, TokenIds
from server.inference.torch_backend import TorchBackend
from server.inference.torch_cuda import LOADING

TEXT: list[TokenIds] = [np.array([2000, 3000, 4000], np.int32)]


@pytest.fixture(scope="module")
def exact(plain_card: Card) -> TorchBackend:
    return TorchBackend(plain_card, "cpu:0")


class Memory:
    """Of a device that is short of it as long as `short` is set."""

    def __init__(self, backend: TorchBackend, patch: pytest.MonkeyPatch) -> None:
        self.short = True
        self.failed = threading.Semaphore(0)
        run = backend._run

        def run_in_it(*args: Any, **kwargs: Any) -> Any:
            if self.short:
                self.failed.release()
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more")
            return run(*args, **kwargs)

        patch.setattr(backend, "_run", run_in_it)


@pytest.fixture
def memory(exact: TorchBackend, monkeypatch: pytest.MonkeyPatch) -> Memory:
    return Memory(exact, monkeypatch)


@pytest.fixture
def worker() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


def test_a_pass_waits_for_the_load_that_has_taken_the_memory(
    exact: TorchBackend, memory: Memory, worker: ThreadPoolExecutor
) -> None:
    with LOADING:
        computed = worker.submit(exact.forward, TEXT)
        assert memory.failed.acquire(timeout=30)
        memory.short = False  # seen only if it is tried again
    assert computed.result(timeout=30).shape == (1, 384)


def test_it_is_out_of_memory_if_that_is_still_short_afterwards(
    exact: TorchBackend, memory: Memory, worker: ThreadPoolExecutor
) -> None:
    with LOADING:
        computed = worker.submit(exact.forward, TEXT)
        assert memory.failed.acquire(timeout=30)
    with pytest.raises(OutOfMemory, match="Tried to allocate more"):
        computed.result(timeout=30)
    assert memory.failed.acquire(timeout=30)  # the second try
    assert not memory.failed.acquire(blocking=False)


def test_it_does_not_wait_for_ever(
    exact: TorchBackend,
    memory: Memory,
    worker: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch_cuda, "LOADING_PATIENCE_S", 0.01)
    with LOADING, pytest.raises(OutOfMemory):
        worker.submit(exact.forward, TEXT).result(timeout=30)


def test_all_parts_of_a_micro_batch_wait_once_for_a_load_that_has_no_end(
    exact: TorchBackend, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    waited: list[float] = []

    class Lock:
        """Of a load that goes on: who waits for it waits in vain."""

        def acquire(self, blocking: bool = True, timeout: float = 0.0) -> bool:
            if blocking:
                waited.append(timeout)
                clock[0] += timeout
            return False

    load = torch_cuda.Loading()
    load._lock = Lock()  # type: ignore[assignment]
    monkeypatch.setattr(torch_cuda, "LOADING", load)
    monkeypatch.setattr(
        "server.inference.torch_cuda.time", SimpleNamespace(monotonic=lambda: clock[0])
    )
    for _ in range(5):  # the whole, and halves of it
        with pytest.raises(OutOfMemory):
            exact.forward(TEXT)
        clock[0] += 1
    assert waited == [torch_cuda.LOADING_PATIENCE_S]


def test_each_load_is_waited_for(
    exact: TorchBackend,
    memory: Memory,
    worker: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with LOADING, monkeypatch.context() as patch:
        patch.setattr(torch_cuda, "LOADING_PATIENCE_S", 0.01)
        with pytest.raises(OutOfMemory):
            worker.submit(exact.forward, TEXT).result(timeout=30)
    assert memory.failed.acquire(timeout=30)
    test_a_pass_waits_for_the_load_that_has_taken_the_memory(exact, memory, worker)


def test_a_load_does_not_wait_for_itself_and_gives_memory_back(
    exact: TorchBackend, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    with LOADING, pytest.raises(OutOfMemory):
        exact.forward(TEXT)
    assert emptied == [1]


def test_budgets_are_found_again_in_what_is_left(
    exact: TorchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([512, 1024])

    def find(backend: TorchBackend, budget: int) -> tuple[int, float]:
        assert budget == 2048
        tokens = next(left)
        return tokens, 10.0 * tokens

    monkeypatch.setattr(TorchBackend, "find_budget", find)
    found = torch_backend.measure_again(
        [exact, exact], Capacity(2048, 1e6, 2, recorded_bytes=5, refused_shapes=1)
    )
    assert found == Capacity(512, 5120.0, 2, recorded_bytes=5, refused_shapes=1)
