"""`scripts/prove/memory.py`, in small: in a real group where one can be made, and without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.prove import floods
from scripts.prove.clients import CUT
from scripts.prove.floods import MIB
from scripts.prove.memory import GROUPS, room, small_server

pytestmark = pytest.mark.server

SIZE = 512 * MIB


@pytest.mark.parametrize("groups", [GROUPS, Path("/nowhere")])
def test_a_flood_does_not_end_a_server_in_512_mb(groups: Path) -> None:
    with room(SIZE, groups) as size:
        with small_server(size) as server:
            (flood,) = floods.attack(
                server, keys=True, clients=24, num_bytes=32 * MIB, seconds=2,
                names=("texts with emoji",),
            )  # fmt: skip
            assert server.process.poll() is None
        assert size.told()
    assert set(flood.statuses) <= {CUT, 200, 413, 503}
    assert {status for status, _ in flood.others} == {200}
    assert 0 < size.at_start_bytes < size.most_bytes < SIZE
