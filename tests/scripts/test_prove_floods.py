"""`scripts/prove/floods.py`, in small."""

from __future__ import annotations

import pytest

from scripts.prove.floods import KEYS, MIB, attack
from tests.server_process import ServerProcess

pytestmark = pytest.mark.server

ROOM = 32 * MIB


@pytest.mark.parametrize("keys", [True, False])
def test_whoever_floods_another_one_is_answered(keys: bool) -> None:
    flags = (*(KEYS if keys else ()), "--max-memory-bytes", str(ROOM))
    flags = (*flags, "--max-concurrent-requests", "64")
    with ServerProcess("--model", "all-MiniLM-L6-v2", *flags) as server:
        floods = list(
            attack(
                server, keys=keys, clients=16, num_bytes=4 * MIB, seconds=0.5,
                names=("bodies of small values", "texts with emoji", "bodies that stall"),
                stalled=200,
            )
        )  # fmt: skip
    for flood in floods:
        assert {status for status, _ in flood.others} == {200}, flood.name
        assert flood.cost.peak_bytes < 4 * ROOM, flood.name
    values, _, stalled = floods
    assert set(values.statuses) <= {200, 400, 413, 503}
    assert stalled.statuses[503]  # of 64 places the enemy has 52
