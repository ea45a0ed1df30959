"""`scripts/prove/visible.py`, which is short already."""

from __future__ import annotations

import pytest

from scripts.prove.visible import FLAGS, HALF_CLOSED, half_closed, told_keys
from tests.server_process import ServerProcess

pytestmark = pytest.mark.server


def test_no_key_is_told_again_and_who_closes_half_is_answered() -> None:
    with ServerProcess(*FLAGS, "--log-level", "debug") as server:
        assert [half_closed(server, sent) for sent in HALF_CLOSED.values()] == [1, 1, 3]
        sent, answers, lines = told_keys(server)
    assert sent == 2 * 13
    assert (answers, lines) == (0, 0)
