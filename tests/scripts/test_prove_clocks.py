"""`scripts/prove/clocks.py`, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.prove.clocks import attack

pytestmark = pytest.mark.server


def test_a_clock_that_is_set_locks_nobody_out_and_ends_keys_as_it_says(tmp_path: Path) -> None:
    back, forward = attack(tmp_path, wait=False)
    for one in (back, forward):
        assert 0 < one.retry_after_s <= 60
        assert one.after_waiting == 429  # nobody has waited
    assert (back.said, forward.said) == ("jumped 3600 s back", "jumped 7200 s forward")
    assert (back.ending, back.ended) == (200, 200)
    assert (forward.ending, forward.ended) == (401, 401)
