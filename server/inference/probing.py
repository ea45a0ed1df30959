"""Whether a backend computes at all: a small input that any model can.

Any thread may call.
"""

from __future__ import annotations

import numpy as np

from server.inference.backend import Backend
from server.inference.loader import Encoder

PROBE_TOKENS = 16


class NotFinite(Exception):
    """The backend gave NaN or infinity."""


def probe(backend: Backend) -> None:
    """Compute a small input that any model can.

    Raises:
        NotFinite: the model gave NaN or infinity.
        Exception: whatever the backend raises.
    """
    vectors = backend.forward([np.ones(PROBE_TOKENS, np.int32)])
    if not np.isfinite(vectors).all():
        raise NotFinite("the model gave a vector that is not finite")


def warm_up(encoder: Encoder) -> None:
    """Run a small forward pass on each device, so that the first request finds memory allocated.

    A larger one would spare the first large micro-batch 4 % of its time, and cost every start more.
    Raises as `probe`.
    """
    for backend in encoder.backends:
        probe(backend)
