"""How the queue and the workers of one model are driven, derived from what its devices can do.

Pure: knows no devices, threads or clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.engine.fair_share import LIGHT_TOKENS
from server.inference.backend import Capacity

CPU_BATCH_TOKENS = 256
CORE_TOKENS_PER_SECOND = 1_000.0  # of a slow one


@dataclass(frozen=True, slots=True)
class Pace:
    """How a model's devices want their work; the defaults are for the cores of a CPU."""

    max_batch_tokens: int = CPU_BATCH_TOKENS  # of a micro-batch, padding counted where there is any
    workers: int = 1  # threads a backend
    # Most tokens of a micro-batch that a light request heads, and least that a worker gets as its
    # share: from about here on a micro-batch is as efficient as it gets. Of what 384 tokens reach
    # on a CPU, 12 tokens reach 55 %, 48: 84 %, 96: 93 %, 192: 97 %.
    light_batch_tokens: int = LIGHT_TOKENS
    tokens_per_second: float = CORE_TOKENS_PER_SECOND  # of a worker, until it has been measured
    # While a device computes, another of its workers takes a micro-batch only if so many tokens
    # wait; fewer are better computed with what comes meanwhile. None: every idle worker takes what
    # there is.
    ahead_tokens: int | None = None
    # Idle workers share what waits. Without it, and with one request at a time, the micro-batches
    # depend on the request alone, not on which worker is quicker.
    share_among_idle: bool = True


def choose_pace(
    capacity: Capacity | None,
    *,
    cores: int,
    max_batch_tokens: int | None,
    concurrent_passes: int | None,
) -> Pace:
    """The pace that suits a model's devices.

    Args:
        capacity: of the devices; None: the cores of a CPU.
        cores: worker threads of a model on the CPU.
        max_batch_tokens: token budget that is wished for on the CPU; None: what suits it. A
            capacity was measured with the wish in mind.
        concurrent_passes: that a backend on the CPU computes at once. What a further worker took
            would wait inside it, where no share is fair. None: as many as threads call.
    """
    if capacity is None:
        workers = min(cores, concurrent_passes or cores)
        return Pace(
            max_batch_tokens or CPU_BATCH_TOKENS,
            workers=workers,
            # The cores are the same, however few workers use them.
            tokens_per_second=CORE_TOKENS_PER_SECOND * cores / workers,
        )
    return Pace(
        capacity.batch_tokens,
        workers=capacity.concurrent_passes,
        light_batch_tokens=capacity.batch_tokens,
        tokens_per_second=capacity.tokens_per_second / capacity.concurrent_passes,
        ahead_tokens=capacity.batch_tokens // 4,
        share_among_idle=False,
    )
