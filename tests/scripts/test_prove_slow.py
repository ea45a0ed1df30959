"""`scripts/prove/slow.py`, in small."""

from __future__ import annotations

import pytest

from scripts.prove.slow import FLAGS, attack
from tests.server_process import ServerProcess

pytestmark = pytest.mark.server

KINDS = ("half a head of 12,000 headers", "a terabyte after a 401, by drops")


def test_who_is_slow_is_left_and_holds_nothing() -> None:
    with ServerProcess(*FLAGS, "--max-memory-bytes", str(64 * 1024 * 1024)) as server:
        seen = list(attack(server, clients=50, names=KINDS))
    assert [one.kind for one in seen] == list(KINDS)
    for one in seen:
        assert one.gone_s is not None, one.kind
        assert one.held_bytes == 0, one.kind
        assert {status for status, _ in one.seen.others} == {200}, one.kind
        assert one.seen.cost.peak_bytes < 64 * 1024 * 1024, one.kind
