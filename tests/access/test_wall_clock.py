from __future__ import annotations

import pytest

from server.access.wall_clock import JUMP_S, WallClock


def test_each_jump_is_told_once_with_both_times(caplog: pytest.LogCaptureFixture) -> None:
    wall, steady = [1_800_000_000.0], [50.0]
    clock = WallClock(lambda: wall[0], lambda: steady[0])
    for jump_s in (-3600, 0, 7200, 0, 0):
        wall[0] += 1 + jump_s
        steady[0] += 1
        clock.look()
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "the wall clock has jumped 3600 s back, from 2027-01-15 08",
        "the wall clock has jumped 7200 s forward, from 2027-01-15 07",
    ]
    assert "from 2027-01-15 08:00:01 UTC to 2027-01-15 07:00:01 UTC" in caplog.messages[0]


def test_a_clock_that_is_corrected_a_little_and_a_look_that_comes_late_are_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wall, steady = [1_800_000_000.0], [50.0]
    clock = WallClock(lambda: wall[0], lambda: steady[0])
    for passed_s, step_s in ((1, 0.9 * JUMP_S), (1, 0.9 * JUMP_S), (600, 0), (1, -0.9 * JUMP_S)):
        wall[0] += passed_s + step_s
        steady[0] += passed_s
        clock.look()
    assert not caplog.messages
