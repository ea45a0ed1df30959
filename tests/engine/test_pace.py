from __future__ import annotations

import pytest

from server.engine.fair_share import LIGHT_TOKENS
from server.engine.pace import Pace, choose_pace
from server.inference.backend import Capacity

GPU = Capacity(batch_tokens=16_384, tokens_per_second=900_000.0, concurrent_passes=3)


@pytest.mark.parametrize("cores", [1, 8])
def test_on_a_cpu_each_core_is_a_worker_and_a_micro_batch_stays_in_its_cache(cores: int) -> None:
    pace = choose_pace(None, cores=cores, max_batch_tokens=None, concurrent_passes=None)
    assert pace == Pace(256, workers=cores)
    assert pace.light_batch_tokens == LIGHT_TOKENS
    assert pace.share_among_idle
    assert pace.ahead_tokens is None


def test_on_a_cpu_the_budget_is_what_was_wished_for() -> None:
    pace = choose_pace(None, cores=2, max_batch_tokens=512, concurrent_passes=None)
    assert pace == Pace(512, workers=2)


@pytest.mark.parametrize(("concurrent_passes", "workers"), [(1, 1), (2, 2), (8, 4)])
def test_no_worker_takes_what_would_wait_inside_the_backend(
    concurrent_passes: int, workers: int
) -> None:
    pace = choose_pace(None, cores=4, max_batch_tokens=None, concurrent_passes=concurrent_passes)
    assert pace.workers == workers
    assert pace.workers * pace.tokens_per_second == 4_000  # of the same cores


@pytest.mark.parametrize("cores", [1, 8])
@pytest.mark.parametrize("wished", [None, 512, 100_000])
def test_what_was_measured_of_devices_decides_whatever_the_cores_and_the_wish(
    cores: int, wished: int | None
) -> None:
    pace = choose_pace(GPU, cores=cores, max_batch_tokens=wished, concurrent_passes=None)
    assert pace == Pace(
        max_batch_tokens=16_384,
        workers=3,
        light_batch_tokens=16_384,  # each micro-batch may be a full one
        tokens_per_second=300_000.0,
        ahead_tokens=4_096,
        share_among_idle=False,
    )
