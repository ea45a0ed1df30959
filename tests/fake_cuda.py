"""A CUDA device as `server.inference.torch_cuda` sees it, on the CPU: streams that do not wait, and
graphs that do again, on the same tensors, what was done while they were recorded.

What the host decided while a graph was recorded is decided for good, as on a device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FakeGraph:
    """In the place of torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for function, args, kwargs, results in self.calls:
            found = tree_leaves(function(*args, **kwargs))
            for old, new in zip(tree_leaves(results), found, strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Recorder(TorchDispatchMode):  # type: ignore[misc]
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        self._graph.calls.append((function, args, kwargs or {}, results))
        return results


@contextlib.contextmanager
def _record(graph: FakeGraph, **_: object) -> Iterator[None]:
    with _Recorder(graph):
        yield


class _Done:
    """A stream or an event on which everything is done at once."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def nothing(self, *_: object) -> None:
        pass

    record = wait = synchronize = wait_stream = nothing


def install(patch: pytest.MonkeyPatch, *, pool_bytes: int = 0) -> None:
    """Have torch.cuda be this fake."""
    pool = (0, 7)
    segments = [
        {"segment_pool_id": pool, "total_size": pool_bytes},
        {"segment_pool_id": (0, 0), "total_size": 5},
    ]
    for name, fake in {
        "Stream": _Done,
        "Event": _Done,
        "CUDAGraph": FakeGraph,
        "graph": _record,
        "stream": contextlib.nullcontext,
        "device": contextlib.nullcontext,
        "current_stream": _Done,
        "graph_pool_handle": lambda: pool,
        "memory_snapshot": lambda: segments,
    }.items():
        patch.setattr(torch.cuda, name, fake)
    zeros = torch.zeros

    def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return zeros(*args, **kwargs)

    patch.setattr(torch, "zeros", unpinned)
