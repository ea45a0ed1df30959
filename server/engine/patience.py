"""How long the engine waits for workers and devices that are not as they should be.

How long clients wait for the engine is in `client_patience`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Pauses and limits, of workers that fail, die or do not come back."""

    probe_interval_s: float = 1.0  # between questions to a model that fails
    # A forward pass that takes longer, and longer than at this speed, will hardly come back.
    stuck_after_s: float = 60.0
    slowest_tokens_per_s: float = 100.0
    # A model that has not computed for so long, at every probe or in a pass that is stuck, has a
    # device that will not come back: the process ends, since only a new one can open it again.
    # A driver that resets itself, or memory that others have taken, needs some seconds.
    give_up_after_s: float = 60.0
    restart_delay_s: float = 0.1  # a thread that dies at once must not be replaced without a pause
    # A worker that is stuck in a forward pass must not keep its model from being loaded again.
    join_timeout_s: float = 10.0


PATIENCE = Patience()
