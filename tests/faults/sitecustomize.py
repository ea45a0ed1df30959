"""Faults of a real server; Python imports this before the program, see `with_faults`.

The device fails while the file `fails` is in FAULTS_FOLDER, and no pass comes back while `hangs` is
there. FAULTS_WAITS names waits that would be too long for a test, and what they are in place of it.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.engine.replica import Replica
from server.inference.backend import Backend, TokenIds

FOLDER = Path(os.environ["FAULTS_FOLDER"])


class FaultyBackend:
    """A backend whose device fails or hangs when it is told to."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.layout = backend.layout
        self.concurrent_passes = backend.concurrent_passes

    def forward(self, sequences: Sequence[TokenIds], *, alone: bool = False) -> NDArray[np.float32]:
        """See Backend."""
        while (FOLDER / "hangs").exists():
            time.sleep(0.05)
        if (FOLDER / "fails").exists():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self._backend.forward(sequences, alone=alone)

    def count_embeddings(self, vocabulary_size: int) -> int:
        """See Backend."""
        return self._backend.count_embeddings(vocabulary_size)


def _begin(self: Any, name: str, queue: Any, backend: Backend, *more: Any, **named: Any) -> None:
    _begin_replica(self, name, queue, FaultyBackend(backend), *more, **named)


_begin_replica = Replica.__init__
setattr(Replica, "__init__", _begin)  # noqa: B010
for place, value in json.loads(os.environ.get("FAULTS_WAITS", "{}")).items():
    module, *path, wait = place.split(":")
    owner: Any = importlib.import_module(module)
    for name in path:
        owner = getattr(owner, name)
    object.__setattr__(owner, wait, value)  # also of what is frozen
