"""Seats and bytes: as many as there are, and all given back, however a request ends."""

from __future__ import annotations

import pytest

from server.api.seats import UNCOUNTED_BODY_BYTES, Seats
from server.errors import Overloaded
from server.settings import Settings


def test_a_seat_is_free_again_also_after_an_error() -> None:
    seats = Seats(1, max_bytes=0)

    def fail() -> None:
        with seats.take():
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            fail()
    with seats.take(), pytest.raises(Overloaded, match="1 requests"):
        seats.take()
    with seats.take():
        pass


def test_bytes_beyond_a_small_part_of_each_body_are_counted_together() -> None:
    seats = Seats(9, max_bytes=100)
    with seats.take() as one, seats.take() as other:
        one.hold(UNCOUNTED_BODY_BYTES)
        assert one.bytes == 0
        one.hold(UNCOUNTED_BODY_BYTES + 60)
        other.hold(UNCOUNTED_BODY_BYTES + 40)
        with pytest.raises(Overloaded, match="100 bytes"):
            other.hold(UNCOUNTED_BODY_BYTES + 41)
        one.hold(UNCOUNTED_BODY_BYTES)  # a body does not shrink
        assert (one.bytes, other.bytes) == (60, 40)
    with seats.take() as third:
        third.hold(UNCOUNTED_BODY_BYTES + 100)


@pytest.mark.parametrize(("frontends", "seats"), [(None, 10), (3, 4), (8, 2)])
def test_each_front_end_has_its_share(frontends: int | None, seats: int) -> None:
    settings = Settings(max_concurrent_requests=10, frontends=frontends)
    shared = Seats.of(settings)
    taken = [shared.take() for _ in range(seats)]
    with pytest.raises(Overloaded):
        shared.take()
    assert len(taken) == seats
