"""Seats and bytes: as many as there are, and all given back, however a request ends."""

from __future__ import annotations

import pytest

from server.api import seats as seats_module
from server.api.seats import SHORT_BYTES, Seats
from server.errors import Overloaded, RequestTooLarge
from server.settings import Settings

MIB = 1024 * 1024


def test_a_seat_that_is_given_back_is_free_again() -> None:
    seats = Seats(1, max_bytes=MIB)
    for _ in range(3):
        seat = seats.take()
        with pytest.raises(Overloaded, match="1 requests"):
            seats.take()
        seat.hold(MIB)
        seat.give_back()


def test_what_all_hold_together_is_bounded() -> None:
    seats = Seats(9, max_bytes=100)
    one, other = seats.take(), seats.take()
    one.hold(60)
    other.hold(40)
    with pytest.raises(Overloaded, match="60 bytes"):
        other.hold(41)
    one.hold(50)  # the body is gone, its texts are left
    other.hold(50)
    one.give_back()
    seats.take().hold(50)
    with pytest.raises(Overloaded):
        seats.take().hold(1)


def test_large_requests_leave_room_for_short_ones() -> None:
    seats = Seats(9, max_bytes=8 * MIB)
    seats.take().hold(4 * MIB)
    large = seats.take()
    with pytest.raises(Overloaded):
        large.hold(3 * MIB)
    for _ in range(4):
        seats.take().hold(SHORT_BYTES)


def test_a_request_for_which_there_is_never_room_is_told_so() -> None:
    seat = Seats(9, max_bytes=8 * MIB).take()
    with pytest.raises(RequestTooLarge, match=f"{7 * MIB} bytes .* {6 * MIB}"):
        seat.hold(7 * MIB)
    seat.hold(6 * MIB)


@pytest.mark.parametrize(("usable", "most"), [(512 * MIB, 128 * MIB), (None, 512 * MIB)])
def test_a_quarter_of_the_memory_is_for_requests(
    monkeypatch: pytest.MonkeyPatch, usable: int | None, most: int
) -> None:
    monkeypatch.setattr(seats_module, "usable_memory_bytes", lambda: usable)
    assert Seats.of(Settings()).max_bytes == most
    assert Seats.of(Settings(frontends=4)).max_bytes == most // 4
    assert Seats.of(Settings(max_memory_bytes=16 * MIB)).max_bytes == 16 * MIB


@pytest.mark.parametrize(("frontends", "seats"), [(None, 10), (3, 4), (8, 2)])
def test_each_front_end_has_its_share(frontends: int | None, seats: int) -> None:
    settings = Settings(max_concurrent_requests=10, frontends=frontends)
    shared = Seats.of(settings)
    taken = [shared.take() for _ in range(seats)]
    with pytest.raises(Overloaded):
        shared.take()
    assert len(taken) == seats
