from __future__ import annotations

from server.frontends.silence import (
    AT_WORK_FACTOR,
    ENGINE_LOST_TICKS,
    ENGINE_SILENT_TICKS,
    Silence,
)


def test_ticks_are_counted_until_the_other_is_heard() -> None:
    silence = Silence()
    assert not silence.ever_heard
    assert [silence.tick() for _ in range(3)] == [1, 2, 3]
    silence.hear()
    assert (silence.ticks, silence.ever_heard, silence.tick()) == (0, True, 1)


def test_a_process_that_is_at_work_has_ten_times_as_long() -> None:
    at_work = iter([True] * 3 + [False] * 5)
    silence = Silence(lambda: next(at_work, True))
    lasted = [bool(silence.tick()) and silence.has_lasted(5) for _ in range(9)]
    assert lasted == [False] * 7 + [True] * 2
    silence.hear()
    lasted = [bool(silence.tick()) and silence.has_lasted(5) for _ in range(5 * AT_WORK_FACTOR)]
    assert lasted == [False] * (5 * AT_WORK_FACTOR - 1) + [True]


def test_an_engine_process_is_told_to_be_silent_long_before_it_is_lost() -> None:
    assert 1 < ENGINE_SILENT_TICKS < ENGINE_LOST_TICKS / 5
